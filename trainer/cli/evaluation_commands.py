"""The commands that compare and score images: `python -m trainer compare | score`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro

from .. import toy
from ..data.examples import find_examples
from ..data.images import parse_color, read_image
from ..evaluation import encoders, plots
from ..evaluation.comparison import Axes, Candidate, Comparison, compare, distinct
from ..evaluation.scores import ImageScorer, table
from ..hardware import find_device
from ..settings.config import ModelOptions, Precision, SamplingConfig
from ..storage import json_files
from ..storage.png_files import save_png
from .commands import Shared, new_names
from .terminal import TerminalObserver


@dataclass(frozen=True, kw_only=True)
class _Sampling(SamplingConfig):
    """Sampling settings without those that `compare` varies."""

    scheduler: tyro.conf.SuppressFixed[tyro.conf.Fixed[str]] = SamplingConfig().scheduler
    steps: tyro.conf.SuppressFixed[tyro.conf.Fixed[int]] = SamplingConfig().steps


@dataclass(frozen=True, kw_only=True)
class Compare(Shared):
    """Generate images of the same prompts from the same noise with several checkpoints, schedulers
    and numbers of steps, and lay them out in one grid. Optionally score them with CLIP or DINO."""

    checkpoints: tuple[Path, ...]
    """The checkpoints to compare; "toy" is the built-in model."""
    prompts: tuple[str, ...]
    """One column per prompt. Repeat a prompt to see, and score, how much its images vary."""
    schedulers: tuple[str, ...] = (SamplingConfig().scheduler,)
    """Noise schedulers, each used with every checkpoint."""
    steps: tuple[int, ...] = (SamplingConfig().steps,)
    """Numbers of denoising steps per image, 1 to 1000, each used with every checkpoint and
    scheduler."""
    embedding: Path | None = None
    """An embedding file from textual inversion. Use its placeholder in the prompts."""
    sampling: Annotated[_Sampling, tyro.conf.arg(name="")] = field(default_factory=_Sampling)
    size: tuple[int, int] = (0, 0)
    """Width and height in pixels. 0: the native resolution of the first checkpoint."""
    judge: Path | None = None
    """A CLIP or DINO model (folder or file), or "toy", to score the images against --photos. None:
    no scores."""
    photos: Path | None = None
    """A folder of photos of the subject, for scoring."""
    folder: Path = Path("out/comparisons")
    """Output folder for the grid, chart and scores. Existing files are not overwritten."""
    precision: Precision = "fp32"
    """Number format of the computation."""
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)

    def run(self) -> None:
        device = find_device(self.device)
        axes = Axes(
            candidates=self._candidates(),
            schedulers=self.schedulers,
            steps=self.steps,
            prompts=self.prompts,
        )
        with TerminalObserver() as observer:
            comparison = compare(
                axes,
                self.sampling,
                device=device,
                size=self.size,
                number_format=self.precision,
                observer=observer,
                image_scorer=self._image_scorer(device),
            )
        self._write(comparison)

    def _candidates(self) -> list[Candidate]:
        labels = distinct([path.stem for path in self.checkpoints])
        return [
            Candidate(
                label=label,
                path=toy.resolve(path),
                embedding=self.embedding,
                options=self.options,
            )
            for label, path in zip(labels, self.checkpoints, strict=True)
        ]

    def _image_scorer(self, device: torch.device) -> ImageScorer | None:
        if (self.judge is None) != (self.photos is None):
            raise ValueError(
                "Scoring compares images with photos of the subject, so --judge and --photos go "
                "together. Give both, or neither."
            )
        if self.judge is None or self.photos is None:
            return None
        return ImageScorer(
            encoders.load(toy.resolve_judge(self.judge), device),
            read_images([self.photos]),
            self.prompts,
        )

    def _write(self, comparison: Comparison) -> None:
        grid, chart, scores = new_names(self.folder, "grid.png", "chart.png", "scores.json")
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(grid, comparison.grid())
        json_files.write(scores, {"prompts": self.prompts, "rows": comparison.records()})
        written = [grid, scores]
        if found := comparison.chart():
            save_png(chart, found)
            written.append(chart)
            logging.info("%s", table(comparison.scored))
        for path in written:
            logging.info("Wrote %s", path)


@dataclass(frozen=True, kw_only=True)
class Score(Shared):
    """Score images of a subject with CLIP or DINO: how well they show the subject and follow their
    prompts, how close they are to a single photo (memorisation), and how much they vary."""

    images: tuple[Path, ...]
    """The images to score: a folder, or files."""
    photos: Path
    """A folder of photos of the subject."""
    judge: Path
    """A CLIP or DINO model (folder or file), or "toy". Scores of different models cannot be
    compared."""
    prompts: tuple[str, ...] = ()
    """The prompts of the images: one per image, or one for all. Empty: no prompt scores."""
    folder: Path | None = None
    """Output folder for the chart and scores. Existing files are not overwritten. None: scores are
    only printed."""

    def run(self) -> None:
        paths = _paths(self.images)
        encoder = encoders.load(toy.resolve_judge(self.judge), find_device(self.device))
        scores = ImageScorer(encoder, read_images([self.photos]), self.prompts).score(
            read_images(paths)
        )
        rows = scores.rows([path.name for path in paths])
        logging.info("%s", table(rows))
        if self.folder:
            chart, numbers = new_names(self.folder, "chart.png", "scores.json")
            self.folder.mkdir(parents=True, exist_ok=True)
            save_png(chart, plots.score_chart(rows))
            json_files.write(numbers, {"scores": dict(rows)})
            for path in (chart, numbers):
                logging.info("Wrote %s", path)


def _paths(entries: Sequence[Path]) -> list[Path]:
    return [example.path for example in find_examples(entries, prompt="")]


def read_images(entries: Sequence[Path]) -> list[np.ndarray]:
    """The images in folders and files, [H, W, 3] uint8, with transparent pixels on white."""
    return [np.asarray(read_image(path, parse_color("white"))) for path in _paths(entries)]
