"""How much the images of a base model with an extracted LoRA are like those of the trained
checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation import metrics
from ..evaluation.comparison import Axes, Candidate, compare
from ..evaluation.encoders import ImageEncoder
from ..evaluation.scores import ImageScorer
from ..observer import Observer
from ..settings.config import Precision, SamplingConfig

BASE, TRAINED, EXTRACTED = "base model", "trained checkpoint", "base model with the LoRA"
"""The models that are compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Likeness:
    """The image encoder's cosine similarities, each the mean of all prompts."""

    extracted: float
    """Of the images with the LoRA to those of the trained checkpoint, from the same noise."""
    base: float
    """Of the base model's images to those, as if the LoRA had kept nothing."""
    subject: Mapping[str, float] | None
    """The subject fidelity of each model's images, by `BASE` and so on. None: without photos."""

    def describe(self) -> str:
        """For users."""
        text = (
            f"Images of the base model with the LoRA have a likeness of {self.extracted:.3f} to "
            f"those of the trained checkpoint, and those without it {self.base:.3f}."
        )
        if self.subject:
            scores = [f"{name} {score:.3f}" for name, score in self.subject.items()]
            text += f" Subject fidelity: {', '.join(scores)}."
        return text


def measure(
    models: Mapping[str, Candidate],
    prompts: Sequence[str],
    sampling: SamplingConfig,
    encoder: ImageEncoder,
    *,
    device: torch.device,
    photos: Sequence[np.ndarray] = (),
    number_format: Precision = "fp32",
    observer: Observer | None = None,
) -> Likeness:
    """Draw each prompt from the same noise with the three models, by `BASE` and so on, one model
    after the other. With photos of the subject [H, W, 3] uint8, the images are also scored."""
    names = (BASE, TRAINED, EXTRACTED)
    candidates = [dataclasses.replace(models[name], label=name) for name in names]
    axes = Axes(
        candidates=candidates,
        schedulers=[sampling.scheduler],
        steps=[sampling.steps],
        prompts=prompts,
    )
    scorer = ImageScorer(encoder, photos) if len(photos) else None
    comparison = compare(
        axes, sampling, device=device, number_format=number_format, observer=observer,
        image_scorer=scorer,
    )  # fmt: skip
    images = {row.label: encoder.embed_images(row.images) for row in comparison.rows}
    extracted, base = (
        float(np.diagonal(metrics.cosines(images[name], images[TRAINED])).mean())
        for name in (EXTRACTED, BASE)
    )
    subject = {
        row.label: row.scores.means["subject fidelity"] for row in comparison.rows if row.scores
    }
    return Likeness(extracted=extracted, base=base, subject=subject or None)
