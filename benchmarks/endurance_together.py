"""Two ComfyUI servers and command lines at work in the same folders at once: on one run, then on
different runs with the same photos, class images and file name."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import torch
from safetensors.torch import load_file

from tests.nodes.conftest import ComfyUI, Outcome, Prompt, make_base, node, toy_workflow
from trainer.toy import PHOTOS

from .soak_checks import require_whole

ROOT = Path(__file__).parents[1]
STEPS = 30
"""Of the run that all want to make."""
IN_USE = r"Process \d+ is already working on this run in .+\. Wait until it finishes, or stop it\."
DONE, REFUSED = "ended well", "was told that another process works on the run"
CLASS_PROMPT, NUM_CLASS_IMAGES = "a photo of a cup", 4

Act = Callable[[], str]
"""Does something, and returns how it ended."""


class Together:
    """Two servers with one base folder."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        base = make_base(folder / "base")
        self.servers = [ComfyUI(base, name) for name in ("", "2")]
        self._rng, self._base = rng, base
        self._runs = base / "output" / "dreambooth" / "runs"
        self._made = base / "models" / "checkpoints" / "dreambooth"
        self.ended: Counter[tuple[str, str]] = Counter()
        """By what was done and how it ended."""

    def start(self) -> None:
        for server in self.servers:
            server.start(OMP_NUM_THREADS="1")

    def stop(self) -> None:
        for server in self.servers:
            server.stop()

    def round(self) -> None:
        self._one_run()
        self._different_runs()
        for folder in (self._base / "output", self._base / "models"):
            for path in folder.rglob("*"):
                if path.is_file() and path.name != "lock":
                    require_whole(path)  # and no unfinished file is left

    def _one_run(self) -> None:
        """All make the same run, which was begun before. One works, the others are told so, or find
        it finished."""
        first, name = self.servers[0], self._new_name()
        prompt = _train(name, self._rng.randrange(10**6), **{"preset.steps": STEPS})

        def stop(outcome: Outcome) -> None:
            if outcome.steps:
                first.interrupt()

        assert first.run(prompt, on_message=stop).end == "execution_interrupted"
        (settings,) = [
            path for path in self._runs.glob("*/settings.toml") if f'"{name}"' in path.read_text()
        ]
        self._at_once("one run", [
            lambda: _ending(self.servers[0].run(prompt)),
            lambda: _ending(self.servers[1].run(prompt)),
            lambda: _command_line("train", "--settings", settings),
        ])  # fmt: skip
        assert self.ended["one run", DONE]
        prompt["3"]["inputs"]["save_every"] = 1  # does not decide the result, but is not cached
        assert first.run(prompt).steps == []
        assert [path.name for path in self._made.glob(f"{name}*")] == [f"{name}.safetensors"]

    def _different_runs(self) -> None:
        """Each makes its own run, on class images that all draw, into files of one name. Each comes
        out as it does alone."""
        name, drawn = self._new_name(), self._rng.randrange(10**6)
        prompts = [_train(name, self._rng.randrange(10**6), class_seed=drawn) for _ in range(2)]
        self._at_once("different runs", [
            lambda: _ending(self.servers[0].run(prompts[0])),
            lambda: _ending(self.servers[1].run(prompts[1])),
            lambda: self._draw_and_train(name, drawn),
        ])  # fmt: skip
        made = sorted(self._made.glob(f"{name}*"))
        assert len(made) == 3, f"{made}, {dict(self.ended)}"
        alone = []
        for prompt in prompts:
            prompt["3"]["inputs"] |= {"on_existing": "retrain", "name": f"{name}-alone"}
            assert self.servers[0].run(prompt).end == "execution_success"
            alone.append(
                max(self._made.glob(f"{name}-alone*"), key=lambda path: path.stat().st_ctime)
            )
        for path in alone:
            assert sum(_same(path, other) for other in made) == 1, path

    def _draw_and_train(self, name: str, seed: int) -> str:
        images = self._base / "output" / "dreambooth" / "class_images"
        drawn = _command_line(
            "priors", "--base", "toy", "--folder", images, "--prompt", CLASS_PROMPT, "--num-images",
            NUM_CLASS_IMAGES, "--sampling.seed", seed, "--sampling.scheduler", "DDIM",
            "--sampling.steps", 2, "--sampling.guidance-scale", 4, "--sampling.batch-size", 2,
        )  # fmt: skip
        trained = _command_line(
            "train", "--preset", "toy", "--base", "toy", "--dataset.photos", PHOTOS,
            "--dataset.prompt", "a photo of sks cup", "--prior.weight", 0, "--steps", 3,
            "--batch-size", 1, "--seed", seed, "--output.folder", self._made, "--output.name", name,
            "--runs", self._runs,
        )  # fmt: skip
        return trained if drawn == DONE else drawn

    def _at_once(self, what: str, acts: Sequence[Act]) -> None:
        start = Barrier(len(acts))

        def act(one: Act) -> str:
            start.wait()
            return one()

        with ThreadPoolExecutor(len(acts)) as pool:
            for end in pool.map(act, acts):
                self.ended[what, end] += 1

    def _new_name(self) -> str:
        return f"cup-{self._rng.randrange(10**9)}"


def _train(name: str, seed: int, class_seed: int | None = None, **inputs: Any) -> Prompt:
    prompt = toy_workflow(seed=seed, name=name, **inputs)
    prompt = {number: prompt[number] for number in ("1", "2", "3")}
    if class_seed is not None:
        prompt["6"] = node("GenerateClassPriors", {
            "model_source": ["1", 0], "class_prompt": CLASS_PROMPT, "images": "made by the model",
            "images.num_images": NUM_CLASS_IMAGES, "images.scheduler": "DDIM", "images.steps": 2,
            "images.guidance_scale": 4.0, "images.seed": class_seed, "images.negative_prompt": "",
            "images.resolution": 0, "images.batch_size": 2, "images.precision": "fp32",
        })  # fmt: skip
        prompt["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
    return prompt


def _ending(outcome: Outcome) -> str:
    if outcome.end == "execution_success":
        return DONE
    return _meaning(outcome.error[1] if outcome.end == "execution_error" else outcome.end)


def _command_line(*arguments: object) -> str:
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-m", "trainer", *map(str, arguments), "--device", "cpu"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return DONE if done.returncode == 0 else _meaning(done.stderr.strip().splitlines()[-1])


def _meaning(message: str) -> str:
    return REFUSED if re.fullmatch(IN_USE, message) else f"failed: {message}"


def _same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.equal(first[key], second[key]) for key in first)
