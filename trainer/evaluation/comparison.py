"""Draws the same prompts from the same noise with several checkpoints, schedulers and numbers of
steps, for a side-by-side comparison with optional scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import families, precision
from ..families.embedding import require_in_use
from ..families.networks import NumberFormats
from ..observer import Observer
from ..sampling import schedulers
from ..sampling.sampler import sample
from ..settings.config import ModelOptions, Precision, SamplingConfig
from . import plots
from .scores import ImageScorer, Scores


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A checkpoint to draw with."""

    label: str
    path: Path
    embedding: Path | None = None
    """The file of a textual inversion, whose placeholder may then be used in prompts."""
    options: ModelOptions = field(default_factory=ModelOptions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Axes:
    """What is compared: every combination of candidate, scheduler and number of steps, each with
    all prompts. Raises ValueError if one of them is empty."""

    candidates: Sequence[Candidate]
    schedulers: Sequence[str]
    steps: Sequence[int]
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        for name in ("candidates", "schedulers", "steps", "prompts"):
            if not getattr(self, name):
                raise ValueError(f"There are no {name} to compare. Name at least one.")
        for scheduler in self.schedulers:
            schedulers.check(scheduler)

    def label(self, candidate: Candidate, scheduler: str, steps: int) -> str:
        """A row's title: the checkpoint, plus scheduler and steps if they differ between rows."""
        parts = [candidate.label]
        if len(self.schedulers) > 1:
            parts.append(scheduler)
        if len(self.steps) > 1:
            parts.append(f"{steps} steps")
        return ", ".join(parts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The images of one checkpoint, scheduler and number of steps, one per prompt."""

    label: str
    candidate: Candidate
    scheduler: str
    steps: int
    images: Sequence[np.ndarray]
    """[H, W, 3] uint8."""
    scores: Scores | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Rows of images. All images in a column start from the same noise."""

    prompts: Sequence[str]
    rows: Sequence[Row]

    @property
    def images(self) -> list[np.ndarray]:
        """Row by row, [H, W, 3] uint8."""
        return [image for row in self.rows for image in row.images]

    def grid(self) -> Image.Image:
        """A labelled grid, with each image's scores below it if there are any."""
        captions = [
            row.scores.caption(i) for row in self.rows if row.scores for i in range(len(row.images))
        ]
        titles = [_with_means(row) for row in self.rows]
        return plots.grid(self.images, columns=self.prompts, rows=titles, captions=captions)

    @property
    def scored(self) -> list[tuple[str, Mapping[str, float]]]:
        """Each row's title and mean scores; empty without scores."""
        return [(row.label, row.scores.means) for row in self.rows if row.scores]

    def chart(self) -> Image.Image | None:
        """A bar chart of the mean scores of each row; None without scores."""
        return plots.score_chart(self.scored) if self.scored else None

    def records(self) -> list[dict[str, Any]]:
        """The settings and mean scores of each row."""
        return [
            {
                "checkpoint": row.candidate.label,
                "scheduler": row.scheduler,
                "steps": row.steps,
                **(row.scores.means if row.scores else {}),
            }
            for row in self.rows
        ]


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number added to repeated ones: "a", "a (2)"."""
    return [
        f"{name} ({count + 1})" if (count := names[:place].count(name)) else name
        for place, name in enumerate(names)
    ]


def _with_means(row: Row) -> str:
    if row.scores is None:
        return row.label
    means = [f"{name} {value:.3f}" for name, value in row.scores.means.items()]
    return "\n".join([row.label, *means])


def compare(
    axes: Axes,
    sampling: SamplingConfig,
    *,
    device: torch.device,
    size: tuple[int, int] = (0, 0),
    number_format: Precision = "fp32",
    observer: Observer | None = None,
    image_scorer: ImageScorer | None = None,
) -> Comparison:
    """Draw all combinations. Prompt i uses the seed `sampling.seed` + i in every row; the scheduler
    and steps of `sampling` are not used. `size` is width and height in pixels; 0 means the native
    resolution of the first checkpoint. `image_scorer` must have the same prompts; None: no scores.
    """
    precision.check(number_format, device)
    for candidate in axes.candidates:
        if candidate.embedding:
            require_in_use(candidate.embedding, [*axes.prompts, *sampling.negative_prompts])
    observer, rows = observer or Observer(), []
    cut_prompts: set[str] = set()
    for candidate in axes.candidates:
        observer.on_load(candidate.path)
        model = families.load(
            candidate.path, device, candidate.embedding, candidate.options,
            NumberFormats(precision=number_format),
        )  # fmt: skip
        model.tokenizer.reported = cut_prompts  # each is reported once, not once per candidate
        size = (size[0] or model.native_resolution, size[1] or model.native_resolution)
        with model.on_device(model.unet), model.on_device(model.vae):
            for scheduler, steps in itertools.product(axes.schedulers, axes.steps):
                setting = replace(sampling, scheduler=scheduler, steps=steps)
                with precision.autocast(number_format, device):
                    images = sample(model, axes.prompts, setting, size=size, observer=observer)
                row = Row(
                    label=axes.label(candidate, scheduler, steps),
                    candidate=candidate,
                    scheduler=scheduler,
                    steps=steps,
                    images=images,
                    scores=image_scorer.score(images) if image_scorer else None,
                )
                rows.append(row)
        del model  # before the next one is loaded
    return Comparison(prompts=axes.prompts, rows=rows)
