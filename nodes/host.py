"""ComfyUI's side of a run: its memory, its progress bar, its stop button and its models. Only
this file and folders.py import ComfyUI itself; the nodes take their form from `comfy_api`."""

from __future__ import annotations

import gc
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import comfy.sd
import comfy.utils
import folder_paths
import numpy as np
import torch
from aiohttp import web
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ..trainer.evaluation import best_step
from ..trainer.families.files import CheckpointFile
from ..trainer.observer import Observer, ScoreReport, StepReport
from .folders import checkpoint_name, temp_folder

SECONDS_BETWEEN_TEXTS = 0.1
"""Each text is a message to every open page."""
NOTHING_TO_FINISH = (
    'No training of this node is making steps now. Send the id of a node that is, as {"node": "3"}.'
)
PREVIEW_SIDE = 512
"""Longer side of a preview on a node, in pixels."""


# --- Memory -------------------------------------------------------------------------------------


@contextmanager
def stepping_aside(*, at_once: bool = True) -> Iterator[torch.device]:
    """Inside, gradients can be had and ComfyUI's models are off the device: at once, or from when a
    ComfyObserver hears of a model being loaded; gives the device. All memory of what ran inside is
    free again afterwards, however it ended."""
    if at_once:
        _make_room()
    try:
        # ComfyUI runs nodes in inference mode, whose tensors can never be trained.
        with torch.inference_mode(False), torch.enable_grad():
            yield model_management.get_torch_device()
    except BaseException as error:
        # The error travels on with every function it passed, and those hold the model.
        _forget_variables(error)
        raise
    finally:
        gc.collect()
        model_management.soft_empty_cache()


def _make_room() -> None:
    model_management.unload_all_models()
    model_management.soft_empty_cache()


def _forget_variables(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


# --- Progress, previews, the stop button --------------------------------------------------------


class ComfyObserver(Observer):
    """Shows a run on the node that is executing, ends it when the stop button was pressed, and
    finishes it when that was asked over HTTP. As a context manager it takes such asking until it is
    left."""

    def __init__(self) -> None:
        context = get_executing_context()
        self._node_id = context.node_id if context else None
        self._activity = ""
        self._bar = comfy.utils.ProgressBar(1)
        self._is_training = False
        self._last_text = 0.0
        self._finish = threading.Event()

    def __enter__(self) -> ComfyObserver:
        return self

    def __exit__(self, *_: object) -> None:
        _making_steps.pop(self._node_id, None)

    def on_progress(self, activity: str, done: int, total: int) -> None:
        _raise_if_stopped()
        self.say(f"{activity} {done}/{total}", now=done == total)
        # Previews are sampled between steps: the bar stays the training's.
        if not self._is_training:
            self._advance(activity, done, total)

    def on_load(self, path: Path) -> None:
        _raise_if_stopped()
        self.say(f"Loading {path.name}")
        _make_room()

    def on_start(self, total_steps: int) -> None:
        _raise_if_stopped()
        self._is_training = True
        _making_steps[self._node_id] = self._finish

    def on_step(self, report: StepReport) -> None:
        _raise_if_stopped()
        is_last = report.step == report.total_steps
        self.say(
            f"step {report.step}/{report.total_steps}, loss {report.loss:.4f}, "
            f"{timedelta(seconds=int(report.seconds_left))} left",
            now=is_last,
        )
        self._advance("Training", report.step, report.total_steps)
        self._is_training = not is_last

    def on_skipped_step(self, step: int) -> None:
        _raise_if_stopped()
        self.say(f"step {step}: fp16 is looking for a scale of the loss")

    def wants_to_finish(self) -> bool:
        return self._finish.is_set()

    def on_preview(self, step: int, images: list[np.ndarray]) -> None:
        row = Image.fromarray(np.concatenate(images, axis=1))
        self._bar.update_absolute(step, preview=("JPEG", row, PREVIEW_SIDE))

    def on_score(self, report: ScoreReport) -> None:
        self.say(f"Scored {best_step.describe(report)}")

    def on_checkpoint(self, step: int, path: Path) -> None:
        name = checkpoint_name(path)
        self.say(f"Wrote {name}")
        payload = {"step": step, "name": name, "node": self._node_id}
        PromptServer.instance.send_sync("dreambooth.checkpoint", payload)

    def _advance(self, activity: str, done: int, total: int) -> None:
        if activity != self._activity:
            self._activity, self._bar = activity, comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)

    def say(self, text: str, *, now: bool = True) -> None:
        """Show a line on the node; unless now, only if the last one has been there for a while."""
        is_due = now or time.monotonic() - self._last_text >= SECONDS_BETWEEN_TEXTS
        if self._node_id and is_due:
            self._last_text = time.monotonic()
            server = PromptServer.instance
            server.send_progress_text(text, self._node_id, server.client_id)


_making_steps: dict[str | None, threading.Event] = {}
"""By the executing node's id, what is set to finish its run."""


async def _finish(request: web.Request) -> web.Response:
    """Makes the step at work the last one of a node's run: {"node": "3"}."""
    try:
        node = (await request.json())["node"]
        _making_steps[str(node)].set()
    except (ValueError, TypeError, KeyError):
        return web.json_response({"error": NOTHING_TO_FINISH}, status=404)
    return web.json_response({"node": node})


def add_routes() -> None:
    """Called once, while ComfyUI starts."""
    PromptServer.instance.routes.post("/dreambooth/finish")(_finish)


def _raise_if_stopped() -> None:
    """Asked at every step: ComfyUI's progress bar asks too, but not at each of its calls."""
    model_management.throw_exception_if_processing_interrupted()


def blocked(reason: str) -> ExecutionBlocker:
    """An output's value when there is none: nodes linked to it show the reason as their error."""
    return ExecutionBlocker(reason)


# --- Models between ComfyUI and files -----------------------------------------------------------


def save_model(model: Any, clip: Any, vae: Any) -> Path:
    """A checkpoint file of ComfyUI's models, patches applied, named by its content."""
    folder = temp_folder("models")
    part = folder / f"saving-{os.getpid()}.safetensors"
    try:
        comfy.sd.save_checkpoint(str(part), model, clip, vae)
        path = folder / f"graph-{CheckpointFile(part).sha256()[:16]}.safetensors"
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def load_model(path: Path) -> tuple[Any, Any, Any]:
    """ComfyUI's MODEL, CLIP and VAE of a checkpoint file."""
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(
        str(path),
        output_vae=True,
        output_clip=True,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
    )[:3]
    return model, clip, vae
