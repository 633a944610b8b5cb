"""Trains a model for each subject and generates its images. Finished runs are reused, stopped runs
are resumed, and only missing images are generated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from trainer import families, precision
from trainer.cli.terminal import TerminalObserver
from trainer.data.examples import find_examples
from trainer.loop import check, train
from trainer.methods.full import FullFineTune
from trainer.runs.identity import Hashes, define
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.sampling.sampler import sample_each
from trainer.settings.config import (
    DatasetConfig,
    OutputConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainer.settings.presets import PRESETS
from trainer.storage import json_files

from .dataset import Subject

logger = logging.getLogger(__name__)

PAPER: dict[str, Any] = {
    "steps": 1000,
    "batch_size": 1,
    "optimizer": {"learning_rate": 5e-6},
    "prior": {"weight": 1.0, "num_images": 1000},
}
"""The paper's settings for Stable Diffusion. It does not give the number of photos per step."""
RECIPES: dict[str, dict[str, Any]] = {
    "paper": PAPER,
    **{name: PRESETS[name] for name in ("object", "face", "toy")},
}
SEEDS_PER_PROMPT = 1000
"""Each prompt has its own seeds, whichever other prompts are chosen."""


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A subject's images, as files."""

    key: str
    """16 hexadecimal digits, computed from everything that decides the images except their seeds.
    """
    pictures: tuple[Path, ...]
    prompts: tuple[str, ...]
    """The prompt of each image, without the identifier."""
    class_pictures: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Studio:
    """Trains the subjects' models and generates images with them."""

    folder: Path
    """Where everything is stored."""
    checkpoint: Path
    changes: Mapping[str, Any]
    """The settings that differ from the defaults, as in a preset."""
    method: FullFineTune
    sampling: SamplingConfig
    identifier: str
    num_images: int
    """Images of each prompt."""
    num_class_pictures: int
    device: torch.device
    discards: bool = False
    """Whether a checkpoint is deleted once its images are generated."""

    def config(self, subject: Subject) -> TrainingConfig:
        """The run of one subject. All write into one folder, where subjects of the same class
        share their class images."""
        return TrainingConfig(
            base=self.checkpoint,
            dataset=DatasetConfig(
                photos=subject.photos,
                prompt=subject.instance_prompt(self.identifier),
                allow_upscaling=True,
            ),
            prior=PriorConfig(prompt=subject.class_prompt),
            # A state after every hundred steps would write terabytes over thirty runs; a run that
            # is stopped leaves one all the same.
            output=OutputConfig(folder=self.folder / "models", name=subject.name, state_every=0),
        ).replace(self.changes)

    def check(self, subjects: Sequence[Subject]) -> None:
        """Raises an error for invalid settings, before anything is trained."""
        drawing = {"preview": {"sampling": self.sampling}}
        for subject in subjects:
            check(self.config(subject).replace(drawing), self.device)

    def draw(self, subject: Subject, places: Sequence[int]) -> Drawn:
        """The images of the prompts with these indices, and of the class. The model is only trained
        and loaded if some are missing."""
        config = self.config(subject)
        key = self._key(subject, config)
        folder = self.folder / "pictures" / f"{subject.name}-{key}"
        requests = [
            _Request(subject.prompt(place, self.identifier), place, seed, folder)
            for place in places
            for seed in self._seeds(place, self.num_images)
        ]
        of_class = [
            _Request(subject.class_prompt, None, seed, folder)
            for seed in self._seeds(len(subject.prompts), self.num_class_pictures)
        ]
        missing = [request for request in [*requests, *of_class] if not request.path.exists()]
        if missing:
            self._draw_missing(config, missing)
        return Drawn(
            key=key,
            pictures=tuple(request.path for request in requests),
            prompts=tuple(
                subject.prompt(place) for place in places for _ in range(self.num_images)
            ),
            class_pictures=tuple(request.path for request in of_class),
        )

    def _seeds(self, place: int, number: int) -> range:
        first = self.sampling.seed + SEEDS_PER_PROMPT * place
        return range(first, first + number)

    def _key(self, subject: Subject, config: TrainingConfig) -> str:
        base = Hashes(self._runs / "hashes.json").sha256(config.base)
        photos = find_examples(config.dataset.photos, config.dataset.prompt)
        run = define(config, self.method, base, "", photos, []).identity
        drawing = dataclasses.asdict(self.sampling)
        del drawing["batch_size"], drawing["seed"]
        return digest([NUMERICS_VERSION, run, drawing, subject.prompts])

    @property
    def _runs(self) -> Path:
        """A separate folder for every numerics version, because their runs differ."""
        return self.folder / "runs" / f"numerics{NUMERICS_VERSION}"

    def _draw_missing(self, config: TrainingConfig, missing: Sequence[_Request]) -> None:
        with TerminalObserver() as observer:
            result = train(
                config, self.method, device=self.device, observer=observer, runs=self._runs
            )
            model = families.load(result.checkpoint, self.device)
            side = config.dataset.resolution or model.native_resolution
            with precision.autocast(config.precision, self.device):
                images = sample_each(
                    model, [(request.prompt, request.seed) for request in missing], self.sampling,
                    size=(side, side), observer=observer,
                )  # fmt: skip
                for request, image in zip(missing, images, strict=True):
                    with json_files.atomic_write(request.path) as file:
                        Image.fromarray(image).save(file, format="PNG")
        if self.discards:
            result.checkpoint.unlink()
            logger.info("Discarded %s", result.checkpoint)


@dataclass(frozen=True)
class _Request:
    prompt: str
    place: int | None
    """None for an image of the class."""
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        what = "class" if self.place is None else f"prompt{self.place + 1:02d}"
        return self.folder / f"{what}-{self.seed:06d}.png"


def digest(facts: Any) -> str:
    """16 hexadecimal digits that are equal only for equal facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
