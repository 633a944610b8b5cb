"""Random workflows of the toy model, in ComfyUI's API form, and what happens while they run."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from tests.nodes.conftest import ComfyUI, Outcome, Prompt, node, toy_workflow
from trainer.toy import PHOTOS

SUCCESS, ERROR, STOPPED = "execution_success", "execution_error", "execution_interrupted"
Inputs = dict[str, Any]
MANY_STEPS: Inputs = {"preset.steps": 60}
"""Of a run that is stopped or finished early."""
MAX_MESSAGES = 60
"""A run is stopped after up to so many messages."""
FOLDER = "cup"
"""The folder of photos in ComfyUI's input folder."""


@dataclass(frozen=True)
class Workflow:
    """A workflow, and how it may end."""

    prompt: Prompt
    ends: frozenset[str] = frozenset({SUCCESS})
    on_message: Callable[[Outcome], None] | None = None


class Workflows:
    """Makes workflows for a server, by the names of its methods in `KINDS`."""

    def __init__(self, server: ComfyUI, rng: random.Random) -> None:
        self._server, self._rng = server, rng
        self._photos = server.base / "input" / FOLDER
        if not self._photos.exists():
            shutil.copytree(PHOTOS, self._photos)

    def full(self) -> Workflow:
        return Workflow(self._train())

    def lora(self) -> Workflow:
        trains: Inputs = {"trains": "LoRA", "trains.rank": 3, "preset": "LoRA toy"}
        return Workflow(self._train(**trains))

    def textual_inversion(self) -> Workflow:
        return Workflow(self._inversion())

    def sampled(self) -> Workflow:
        return Workflow(self._train(is_sampled=True))

    def class_images(self) -> Workflow:
        with_prior: Inputs = {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
        prompt = self._train(**with_prior)
        images = {
            "num_images": 3, "scheduler": "DDIM", "steps": 2, "guidance_scale": 4.0, "seed":
            self._rng.randrange(4), "negative_prompt": "", "resolution": 0, "batch_size": 2,
            "precision": "fp32",
        }  # fmt: skip
        prompt["6"] = node("GenerateClassPriors", {
            "model_source": ["1", 0], "class_prompt": "a photo of a cup", "images":
            "made by the model", **{f"images.{name}": value for name, value in images.items()},
        })  # fmt: skip
        return Workflow(prompt)

    def scored_previews(self) -> Workflow:
        prompt = self._train(preview_settings=["6", 0], save_every=2)
        prompt["6"] = node("PreviewSettings", {
            "prompts": "a photo of sks cup at night\na photo of sks cup in the snow", "every": 2,
            "scheduler": "DDIM", "steps": 2, "guidance_scale": 4.0, "seed": 0, "negative_prompt":
            "", "judge": "toy (embedded)", "class_prompt": "a photo of a cup",
            "num_class_images": 2,
        })  # fmt: skip
        return Workflow(prompt)

    def score_images(self) -> Workflow:
        prompt = toy_workflow()
        prompt["4"]["inputs"] |= {"model_source": ["1", 0], "seed": self._rng.randrange(99)}
        prompt["6"] = node("ScoreImages", {
            "images": ["4", 0], "photos": ["2", 1], "prompt": "a photo of a cup", "judge":
            "toy (embedded)",
        })  # fmt: skip
        return Workflow({name: prompt[name] for name in ("1", "2", "4", "6")})

    def cancelled(self) -> Workflow:
        kind, left = self._rng.choice([self._train, self._inversion]), [self._num_messages()]
        prompt = kind(is_sampled=True, **MANY_STEPS)

        def stop(outcome: Outcome) -> None:
            left[0] -= 1
            if left[0] == 0:
                self._server.interrupt()

        return Workflow(prompt, frozenset({STOPPED, SUCCESS}), stop)

    def finished_early(self) -> Workflow:
        """Also has its weights saved before."""
        asked: list[int] = []

        def finish(outcome: Outcome) -> None:
            if outcome.steps and not asked:
                asked.append(outcome.steps[-1])
                for route in ("save", "finish"):
                    self._server.post(f"/dreambooth/{route}", {"node": "3"})

        return Workflow(self._train(**MANY_STEPS), on_message=finish)

    def missing_photo(self) -> Workflow:
        """A photo is gone, or damaged, when the workflow is queued."""
        folder = self._server.base / "input" / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(PHOTOS, folder)
        next(folder.glob("*.png")).write_bytes(b"half")
        return Workflow(self._train("input/bad"), frozenset({ERROR}))

    def impossible_setting(self) -> Workflow:
        prompt = self._train()
        prompt["2"]["inputs"]["resolution"] = 64 + 8 * self._rng.randrange(3) + 4
        return Workflow(prompt, frozenset({ERROR}))

    def photo_panel(self) -> Workflow:
        """What the page does with photos, while a workflow runs."""
        name = self._rng.choice(sorted(path.name for path in PHOTOS.glob("*.png")))
        photo = {"folder": f"input/{FOLDER}", "name": name}
        get, post = self._server.get, self._server.post
        get(f"/dreambooth/photos?{urlencode({'folder': photo['folder'], 'prompt': 'a cup'})}")
        for route, more in (
            ("caption", {"text": f"a photo of sks cup {self._rng.randrange(99)}"}),
            ("remove", {}), ("add", {"names": [name]}), ("changed", {}),
        ):  # fmt: skip
            post(f"/dreambooth/photos/{route}", {**photo, **more})
        removed = post("/dreambooth/photos/restore", photo)[0]
        if removed != 200:
            shutil.copy(PHOTOS / name, self._photos)
        get("/dreambooth/live"), get("/dreambooth/class_images")
        return Workflow(self._train(f"input/{FOLDER}"))

    def again(self) -> Workflow:
        """The same workflow once more: a run that is finished already."""
        return Workflow(self._train(seed=0))

    def _num_messages(self) -> int:
        return self._rng.randint(1, MAX_MESSAGES)

    def _train(
        self, folder: str = "toy cup photos (embedded)", *, is_sampled: bool = False, **inputs: Any
    ) -> Prompt:
        seed = inputs.pop("seed", self._rng.randrange(1, 10**6))
        prompt = toy_workflow(folder, seed=seed, name=f"cup-{seed}", **inputs)
        return prompt if is_sampled else _without_samples(prompt)

    def _inversion(self, *, is_sampled: bool = False, **inputs: Any) -> Prompt:
        prompt, seed = toy_workflow(), self._rng.randrange(10**6)
        prompt["2"]["inputs"]["instance_prompt"] = "a photo of <my-cup>"
        prompt["3"] = node("TextualInversionTrain", {
            "model_source": ["1", 0], "dataset": ["2", 0], "placeholder": "<my-cup>",
            "initializer": "cup", "num_vectors": 0, "preset": "toy", "preset.learning_rate": 3e-3,
            "preset.steps": 3, "preset.batch_size": 1, "preset.templates": "captions", "seed":
            seed, "save_every": 0, "name": f"cup-{seed}", "on_existing": "reuse", **inputs,
        })  # fmt: skip
        return prompt if is_sampled else _without_samples(prompt)


KINDS: dict[str, Callable[[Workflows], Workflow]] = {
    "train all weights": Workflows.full,
    "train a LoRA": Workflows.lora,
    "textual inversion": Workflows.textual_inversion,
    "train, then Sample with Scheduler": Workflows.sampled,
    "class images, then train": Workflows.class_images,
    "train with scored previews": Workflows.scored_previews,
    "Score Images": Workflows.score_images,
    "stopped at a random moment": Workflows.cancelled,
    "saved and finished early by the page's buttons": Workflows.finished_early,
    "a damaged photo": Workflows.missing_photo,
    "an impossible resolution": Workflows.impossible_setting,
    "photos listed, captioned, removed and brought back": Workflows.photo_panel,
    "queued again": Workflows.again,
}


def _without_samples(prompt: Prompt) -> Prompt:
    return {name: each for name, each in prompt.items() if name in ("1", "2", "3")}
