"""Classifies what images of the toy world show, to measure how many show the demo's subject and how
many show other members of its class. The classifier is trained in `recipe.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..evaluation.toy_encoder import ToyEncoder, to_pixels
from ..families.files import CheckpointFile
from . import JUDGE, world
from .drawing import SHAPES

QUESTIONS: dict[str, list[str]] = {
    "shape": list(SHAPES),
    "color": list(world.COLORS),
    "background": list(world.BACKGROUNDS),
    "is_subject": ["no", "yes"],
}
"""The questions that the classifier answers about an image, and the possible answers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one image shows."""

    shape: str
    color: str
    background: str
    is_subject: bool


class Judge(ToyEncoder):
    """The embedded encoder, extended by the classifier's answers."""

    def __init__(self) -> None:
        super().__init__(CheckpointFile(JUDGE))

    @torch.no_grad()
    def verdicts(self, images: Sequence[np.ndarray]) -> list[Verdict]:
        """One verdict per image [64, 64, 3] uint8."""
        logits = self.classifier(to_pixels(images))
        chosen = {question: scores.argmax(dim=1).tolist() for question, scores in logits.items()}
        found = {q: [self.answers[q][index] for index in indices] for q, indices in chosen.items()}
        return [
            Verdict(shape, color, background, is_subject == "yes")
            for shape, color, background, is_subject in zip(*found.values(), strict=True)
        ]

    def subject_score(self, images: Sequence[np.ndarray]) -> float:
        """The share of images that show the subject, 0 to 1."""
        verdicts = self.verdicts(images)
        return sum(verdict.is_subject for verdict in verdicts) / len(verdicts)

    def prior_score(self, images: Sequence[np.ndarray], shape: str = "cup") -> float:
        """The share of images that show this shape but not the subject, 0 to 1."""
        verdicts = self.verdicts(images)
        return sum(v.shape == shape and not v.is_subject for v in verdicts) / len(verdicts)
