"""The commands that look at pictures: `python -m trainer compare | score`."""

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
from ..settings.config import Precision, SamplingConfig
from ..storage import json_files
from .commands import Shared, find_device, new_names
from .terminal import TerminalObserver


@dataclass(frozen=True, kw_only=True)
class _Drawing(SamplingConfig):
    """Without what is compared."""

    scheduler: tyro.conf.SuppressFixed[tyro.conf.Fixed[str]] = SamplingConfig().scheduler
    steps: tyro.conf.SuppressFixed[tyro.conf.Fixed[int]] = SamplingConfig().steps


@dataclass(frozen=True, kw_only=True)
class Compare(Shared):
    """Draw the same prompts from the same noise with several checkpoints, schedulers and numbers of
    steps, and lay them out in one picture; with a judge, score them."""

    checkpoints: tuple[Path, ...]
    """The checkpoints that draw, or "toy"."""
    prompts: tuple[str, ...]
    """A column each. One that is given several times shows, and scores, how the pictures vary."""
    schedulers: tuple[str, ...] = (SamplingConfig().scheduler,)
    """Each with every checkpoint."""
    steps: tuple[int, ...] = (SamplingConfig().steps,)
    """Denoising steps per image, 1 to 1000: each number with every checkpoint and scheduler."""
    embedding: Path | None = None
    """The file of a textual inversion, whose placeholder then stands for its vectors in prompts."""
    drawing: Annotated[_Drawing, tyro.conf.arg(name="")] = field(default_factory=_Drawing)
    size: tuple[int, int] = (0, 0)
    """Width and height, in pixels; 0 takes the first checkpoint's own."""
    judge: Path | None = None
    """What scores: CLIP or DINO as a folder or a file, or "toy"; none scores nothing."""
    photos: Path | None = None
    """A folder of photos of the subject, for the judge."""
    folder: Path = Path("out/comparisons")
    """Where grid, chart and scores go, under new names."""
    precision: Precision = "fp32"
    """Number format of the computation."""

    def run(self) -> None:
        device = find_device(self.device)
        axes = Axes(
            candidates=_candidates(self.checkpoints, self.embedding),
            schedulers=self.schedulers,
            steps=self.steps,
            prompts=self.prompts,
        )
        with TerminalObserver() as observer:
            comparison = compare(
                axes,
                self.drawing,
                device=device,
                size=self.size,
                number_format=self.precision,
                observer=observer,
                image_scorer=self._image_scorer(device),
            )
        self._write(comparison)

    def _image_scorer(self, device: torch.device) -> ImageScorer | None:
        if (self.judge is None) != (self.photos is None):
            raise ValueError(
                "A judge holds pictures against photos of the subject: --judge and --photos go "
                "together. Give both, or neither."
            )
        if self.judge is None or self.photos is None:
            return None
        return ImageScorer(
            encoders.load(toy.resolve_judge(self.judge), device), _read([self.photos]), self.prompts
        )

    def _write(self, comparison: Comparison) -> None:
        grid, chart, scores = new_names(self.folder, "grid.png", "chart.png", "scores.json")
        self.folder.mkdir(parents=True, exist_ok=True)
        comparison.grid().save(grid)
        json_files.write(scores, {"prompts": self.prompts, "rows": comparison.records()})
        written = [grid, scores]
        if found := comparison.chart():
            found.save(chart)
            written.append(chart)
            logging.info("%s", table(comparison.scored))
        for path in written:
            logging.info("Wrote %s", path)


@dataclass(frozen=True, kw_only=True)
class Score(Shared):
    """Score pictures of a subject: how much they show it and their prompts, how much like one photo
    they are, and how they vary."""

    images: tuple[Path, ...]
    """The pictures: a folder of them, or files."""
    photos: Path
    """A folder of photos of the subject."""
    judge: Path
    """What scores: CLIP or DINO as a folder or a file, or "toy". Numbers of different judges cannot
    be compared."""
    prompts: tuple[str, ...] = ()
    """What the pictures should show: one for each, or one for all; none leaves it out."""
    folder: Path | None = None
    """Where the chart and the scores go, under new names; none writes nothing."""

    def run(self) -> None:
        paths, judge = (
            _paths(self.images),
            encoders.load(toy.resolve_judge(self.judge), find_device(self.device)),
        )
        scores = ImageScorer(judge, _read([self.photos]), self.prompts).score(_read(paths))
        rows = scores.rows([path.name for path in paths])
        logging.info("%s", table(rows))
        if self.folder:
            chart, numbers = new_names(self.folder, "chart.png", "scores.json")
            self.folder.mkdir(parents=True, exist_ok=True)
            plots.score_chart(rows).save(chart)
            json_files.write(numbers, {"scores": dict(rows)})
            for path in (chart, numbers):
                logging.info("Wrote %s", path)


def _candidates(checkpoints: Sequence[Path], embedding: Path | None) -> list[Candidate]:
    labels = distinct([path.stem for path in checkpoints])
    return [
        Candidate(label=label, path=toy.resolve(path), embedding=embedding)
        for label, path in zip(labels, checkpoints, strict=True)
    ]


def _paths(entries: Sequence[Path]) -> list[Path]:
    return [example.path for example in find_examples(entries, prompt="")]


def _read(entries: Sequence[Path]) -> list[np.ndarray]:
    """The images in folders and files, [H, W, 3] uint8, transparent parts on white."""
    return [np.asarray(read_image(path, parse_color("white"))) for path in _paths(entries)]
