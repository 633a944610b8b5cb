"""What nodes use of ComfyUI: its memory, progress bar, stop button and models. Only this file and
folders.py import ComfyUI itself; the other modules import `comfy_api` alone."""

from __future__ import annotations

import gc
import html
import logging
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import comfy.model_management as model_management
import comfy.sd
import comfy.utils
import folder_paths
import torch
from aiohttp import web
from comfy.model_sampling import V_PREDICTION
from comfy_execution.graph_utils import ExecutionBlocker
from comfy_execution.utils import get_executing_context
from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete
from server import PromptServer

from ..trainer import toy
from ..trainer.families.files import CheckpointFile
from ..trainer.observer import Observer
from ..trainer.storage.names import KNOWN_AS, printable
from .errors import reword
from .folders import GRAPH, checkpoint_name, temp_folder

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_TEXTS = 0.1
"""Each text is sent to every open page."""
MAX_LINES = 5
"""Lines that a node shows below what it is doing: the latest warnings."""


# --- Memory -------------------------------------------------------------------------------------


@contextmanager
def trainer_device(*, unload_now: bool = True) -> Iterator[torch.device]:
    """Enable gradients, unload ComfyUI's models and return the device. Without `unload_now`, the
    models stay until a ComfyObserver reports that the trainer loads its own. All memory that was
    used inside is free afterwards, also after an error."""
    if unload_now:
        _unload_models()
    try:
        # ComfyUI runs nodes in inference mode, and tensors made in it cannot be trained.
        with torch.inference_mode(False), torch.enable_grad():
            yield model_management.get_torch_device()
    except BaseException as error:
        # The error keeps the variables of every function that it passed through, and so the model.
        _clear_frames(error)
        raise
    finally:
        gc.collect()
        model_management.soft_empty_cache()


def _unload_models() -> None:
    model_management.unload_all_models()
    model_management.soft_empty_cache()


def _clear_frames(error: BaseException | None) -> None:
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_megabytes() -> int:
    """Free memory of the device, or of the computer if ComfyUI runs on the CPU."""
    return round(model_management.get_free_memory() / 2**20)


def is_on_cpu() -> bool:
    return bool(model_management.get_torch_device().type == "cpu")


# --- The server and its pages -------------------------------------------------------------------


def send_event(name: str, data: Mapping[str, Any]) -> None:
    """Send a message to all open pages."""
    PromptServer.instance.send_sync(name, data)


def call_later(seconds: float, call: Callable[[], None]) -> None:
    """Call a function in the server's thread."""
    loop = PromptServer.instance.loop
    loop.call_soon_threadsafe(loop.call_later, seconds, call)


def add_route(method: str, path: str, answer: Callable[[web.Request], Any]) -> None:
    PromptServer.instance.routes.route(method, path)(answer)


def call_at_startup(call: Callable[[object], Any]) -> None:
    PromptServer.instance.app.on_startup.append(call)


def json_answer(content: Any, *, status: int = 200) -> web.Response:
    return web.json_response(content, status=status)


def image_answer(content: bytes) -> web.Response:
    """A JPEG image whose address changes with its content."""
    headers = {"Cache-Control": "private, max-age=86400"}
    return web.Response(body=content, content_type="image/jpeg", headers=headers)


# --- Progress, warnings, the stop button --------------------------------------------------------


def executing_node() -> tuple[str, str]:
    """The ids of the node that is executing and of its queued workflow."""
    context = get_executing_context()
    return (str(context.node_id), str(context.prompt_id)) if context else ("", "")


class NodeText(logging.Handler):
    """The text on the executing node: what it is doing, and a line for each of the latest warnings
    of this pack's loggers in this thread."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        context = get_executing_context()
        self.node_id = context.node_id if context else None
        self._thread = threading.get_ident()
        self._activity = ""
        self._lines: deque[str] = deque(maxlen=MAX_LINES)
        self._listener = _line_listener.get()

    def emit(self, record: logging.LogRecord) -> None:
        """Called by logging. Never raises."""
        if record.thread != self._thread:
            return
        try:
            self.add(f"Warning: {' '.join(reword(record.getMessage()).split())}")
        except Exception:
            self.handleError(record)

    def add(self, line: str) -> None:
        """Add a line that stays while the node runs."""
        if self._listener:
            self._listener(line)
        if line not in self._lines:
            self._lines.append(line)
            self.show(self._activity)

    def show(self, activity: str) -> None:
        self._activity = activity
        if self.node_id:
            server = PromptServer.instance
            text = printable("\n".join(filter(None, [activity, *self._lines])))
            # The page shows HTML, and [[text|address]] as a link.
            text = html.escape(text, quote=False).replace("[[", "[&#91;")
            server.send_progress_text(text, self.node_id, server.client_id)


_node_text: ContextVar[NodeText | None] = ContextVar("node_text", default=None)
_line_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listening_to_lines(listener: Callable[[str], None]) -> Iterator[None]:
    """Inside, `listener` gets each line that is added to the node's text."""
    token = _line_listener.set(listener)
    try:
        yield
    finally:
        _line_listener.reset(token)


@contextmanager
def warnings_on_node() -> Iterator[None]:
    """Show the warnings that are logged inside on the executing node too."""
    text, pack_logger = NodeText(), logging.getLogger(__name__.rpartition(".nodes.")[0])
    token = _node_text.set(text)
    pack_logger.addHandler(text)
    try:
        yield
    finally:
        pack_logger.removeHandler(text)
        _node_text.reset(token)


class ComfyObserver(Observer):
    """Shows on the node that is executing what is being done. Raises ComfyUI's exception once the
    stop button is pressed."""

    def __init__(self) -> None:
        self._text = _node_text.get() or NodeText()
        self.node_id = self._text.node_id
        self._activity = ""
        self._bar = comfy.utils.ProgressBar(1)
        self.is_toy = False
        self._last_text = 0.0

    def on_progress(self, activity: str, done: int, total: int) -> None:
        raise_if_stopped()
        self.show(f"{activity} {done}/{total}", now=done == total)
        self.advance(activity, done, total)

    def on_plan(self, text: str) -> None:
        self._text.add(text)

    def on_load(self, path: Path) -> None:
        raise_if_stopped()
        self.show(f"Loading {checkpoint_name(path)}")
        _unload_models()
        self.is_toy = path == toy.MODEL

    def advance(self, activity: str, done: int, total: int) -> None:
        """Move the progress bar."""
        if activity != self._activity:
            self._activity, self._bar = activity, comfy.utils.ProgressBar(total)
        self._bar.update_absolute(done, total)

    def show(self, text: str, *, now: bool = True) -> None:
        """Show a line on the node. Without `now`, skip it if the last one was just shown."""
        if now or time.monotonic() - self._last_text >= SECONDS_BETWEEN_TEXTS:
            self._last_text = time.monotonic()
            self._text.show(text)


def raise_if_stopped() -> None:
    """Called at every step, as ComfyUI's progress bar does not check at each of its updates."""
    model_management.throw_exception_if_processing_interrupted()


def no_result(reason: str) -> ExecutionBlocker:
    """The value of an output without a result. Nodes connected to it are left out, and the reason
    is shown on the executing node, if there is one."""
    if reason:
        tell(reason)
    return ExecutionBlocker(None)


def tell(line: str) -> None:
    """Show a line on the executing node while it runs, and log it."""
    logger.info(line)
    (_node_text.get() or NodeText()).add(line)


# --- Models between ComfyUI and files -----------------------------------------------------------


def save_model(model: Any, clip: Any, vae: Any, metadata: Mapping[str, str]) -> Path:
    """Save ComfyUI's models, with patches applied, as a checkpoint named by its content."""
    part = temp_folder("models") / f"saving-{os.getpid()}.safetensors"
    try:
        comfy.sd.save_checkpoint(str(part), model, clip, vae, metadata=dict(metadata))
        path = part.parent / f"graph-{CheckpointFile(part).sha256()[:16]}.safetensors"
        part.replace(path)
        KNOWN_AS[path] = GRAPH
    finally:
        part.unlink(missing_ok=True)
    return path


def load_model(
    path: Path,
    *,
    is_v: bool = False,
    zero_snr: bool = False,
    clip_skip: int | None = None,
    loras: Sequence[tuple[Path, float]] = (),
) -> tuple[Any, Any, Any]:
    """Load a checkpoint as ComfyUI's MODEL, CLIP and VAE, changed by LoRAs at these strengths. The
    MODEL predicts v or epsilon as said here: ComfyUI assumes that every Stable Diffusion 1 model
    predicts epsilon, and guesses it of Stable Diffusion 2. The CLIP uses the layer `clip_skip`;
    None: the model's usual one."""
    model, clip, vae = comfy.sd.load_checkpoint_guess_config(
        str(path),
        output_vae=True,
        output_clip=True,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
    )[:3]
    sampling = model.get_model_object("model_sampling")
    guessed = isinstance(sampling, V_PREDICTION), bool(getattr(sampling, "zsnr", False))
    if guessed != (is_v, zero_snr):
        name = "v_prediction" if is_v else "eps"
        (model,) = ModelSamplingDiscrete().patch(model, name, zsnr=zero_snr)
    if clip_skip is not None:
        clip.clip_layer(-clip_skip)
    for lora, strength in loras:
        weights = comfy.utils.load_torch_file(str(lora), safe_load=True)
        model, clip = comfy.sd.load_lora_for_models(model, clip, weights, strength, strength)
    return model, clip, vae
