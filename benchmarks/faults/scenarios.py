"""The runs that meet faults: small ones, in which every kind of file is read and written."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.random_networks import TINY, construct
from benchmarks.soak import METHODS
from trainer.families.sd1 import SD1
from trainer.methods.base import Method
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs import settings_file
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

RESOLUTION = 16
CAPTION = "a photo of sks <cup> cup"
NUM_PHOTOS = 2
EARLIER = "cup.safetensors"
"""A result that lies in the output folder already. The run must not touch it."""


@dataclass(frozen=True)
class Scenario:
    """A kind of run."""

    name: str
    command: str
    """Of the command line."""
    method: Method
    is_scored: bool = False
    """Whether previews are scored, so that there is a best step."""
    is_resumed: bool = False
    """Whether the run has been killed before, while it wrote its result."""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("full", "train", METHODS["full"]),
        Scenario("resumed", "train", METHODS["full"], is_resumed=True),
        Scenario("scored", "train", METHODS["full"], is_scored=True),
        Scenario("lora", "lora", METHODS["lora"]),
        Scenario("inversion", "textual-inversion", METHODS["textual-inversion"]),
    )
}


class Place:
    """The folders of a scenario. Their paths stay the same, because a run's folder names files by
    their absolute paths."""

    def __init__(self, folder: Path, scenario: Scenario) -> None:
        self.scenario = scenario
        self.inputs, self.out = folder / "inputs", folder / "out"
        self.kept = folder / "kept"
        """A copy of what the output folder holds before each run."""
        self._settings = folder / "command"

    @property
    def roots(self) -> list[Path]:
        return [self.inputs, self.out]

    def create(self) -> None:
        for folder in (self.inputs / "photos", self.kept, self._settings):
            folder.mkdir(parents=True)
        _write_inputs(self.inputs)
        save_file({"earlier": torch.arange(3)}, self.kept / EARLIER)
        settings_file.write(self._settings, self._config(), self.scenario.method)

    def reset(self) -> None:
        """Start from the kept files again."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.copytree(self.kept, self.out)

    def keep(self) -> None:
        """Begin each run with the present files from now on."""
        shutil.rmtree(self.kept)
        shutil.copytree(self.out, self.kept)

    def arguments(self) -> list[str]:
        """The command line of the run."""
        flags = ["--settings", self._settings / settings_file.SETTINGS, "--runs", self.out / "runs",
                 "--device", "cpu"]  # fmt: skip
        judge = ["--judge", "toy"] if self.scenario.is_scored else []
        return [self.scenario.command, *map(str, flags), *judge]

    def _config(self) -> TrainingConfig:
        drawing = SamplingConfig(steps=2, guidance_scale=1, batch_size=2)
        prior = PriorConfig(weight=1, prompt="a photo of a cup", num_images=2, sampling=drawing)
        config = TrainingConfig(
            base=self.inputs / "base.safetensors",
            dataset=DatasetConfig(
                photos=(self.inputs / "photos",), prompt=CAPTION, resolution=RESOLUTION
            ),
            prior=prior,
            preview=PreviewConfig(prompts=("a photo of sks cup",), every=1, sampling=drawing),
            optimizer=OptimizerConfig(learning_rate=1e-3),
            output=OutputConfig(folder=self.out, name="cup", save_every=1, keep=1, state_every=1),
            steps=3,
            batch_size=1,
        )
        if isinstance(self.scenario.method, TextualInversion):
            config = replace(config, prior=replace(prior, weight=0))
        return config


def _write_inputs(folder: Path) -> None:
    """A checkpoint with small random networks; photos, one of them with a caption and a mask."""
    torch.manual_seed(0)
    tensors = SD1.checkpoint_tensors(*construct(**TINY))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "base.safetensors",
        metadata={"format": "pt", "dreambooth.constants": json.dumps({"resolution": RESOLUTION})},
    )
    rng = np.random.default_rng(0)
    for number in range(NUM_PHOTOS):
        pixels = rng.integers(0, 256, size=(RESOLUTION, RESOLUTION, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
    (folder / "photos" / "0.txt").write_text(f"{CAPTION} on a table", "utf-8")
    mask = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    mask[4:] = 255
    Image.fromarray(mask).save(folder / "photos" / "0-mask.png")
