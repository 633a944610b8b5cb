"""The toy world's judge: a small classifier, trained on drawings, that says what a picture shows.

It scores how many pictures show the demo's subject, and whether the class prompt still gives
other members of the class. How it was trained lives in `recipe.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..evaluation import encoders
from . import world
from .drawing import SHAPES

SIZE = (64, 64)
WEIGHTS = Path(__file__).parent / "judge.safetensors"
QUESTIONS: dict[str, list[str]] = {
    "shape": list(SHAPES),
    "color": list(world.COLORS),
    "background": list(world.BACKGROUNDS),
    "is_subject": ["no", "yes"],
}
"""What the classifier is asked of each picture, and the possible answers."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one picture shows."""

    shape: str
    color: str
    background: str
    is_subject: bool


def load(path: Path, device: torch.device) -> encoders.Judge:
    """The embedded judge where "toy" is asked for, and of any other path what `encoders.load`
    gives."""
    return Judge() if str(path) == "toy" else encoders.load(path, device)


class Classifier(nn.Module):
    """Pixels [B, 3, 64, 64] in [-1, 1] to the logits of each question's answers [B, answers]."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 96, 128), []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU())
        self.heads = nn.ModuleDict(
            {question: nn.Linear(128, len(answers)) for question, answers in QUESTIONS.items()}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.features(pixels)
        return {question: head(features) for question, head in self.heads.items()}


class Judge:
    """The trained classifier, read from `judge.safetensors`."""

    def __init__(self, weights: Path = WEIGHTS) -> None:
        from safetensors.torch import load_file

        # Building the layers draws random numbers; the caller's generator is not to notice.
        with torch.random.fork_rng(devices=[]):
            self.classifier = Classifier()
        self.classifier.load_state_dict(
            {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
        )
        self.classifier.eval()

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """[N, 128] of images [H, W, 3] uint8: what the classifier answers all questions from."""
        features: Tensor = self.classifier.features(_pixels(images))
        return features

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N, 128]: the sum of the directions in which the answers lie that a prompt names, such as
        cup, red and beach. ValueError for a prompt that names none."""
        return torch.stack([self._embed_prompt(prompt) for prompt in prompts])

    def _embed_prompt(self, prompt: str) -> Tensor:
        words, directions = set(re.findall(r"\w+", prompt.lower())), []
        for question in ("shape", "color", "background"):
            weights: Any = self.classifier.heads[question].weight
            # An answer is right where it is more so than the others.
            relative = nn.functional.normalize(weights - weights.mean(dim=0), dim=1)
            directions += [relative[i] for i, a in enumerate(QUESTIONS[question]) if a in words]
        if not directions:
            raise ValueError(
                f"The prompt {prompt!r} names nothing that the toy's judge knows. Name a shape "
                f"({', '.join(QUESTIONS['shape'])}), a colour or a background of the toy world."
            )
        return torch.stack(directions).sum(dim=0)

    @torch.no_grad()
    def verdicts(self, images: Sequence[np.ndarray]) -> list[Verdict]:
        """One verdict per image [64, 64, 3] uint8."""
        logits = self.classifier(_pixels(images))
        chosen = {question: scores.argmax(dim=1).tolist() for question, scores in logits.items()}
        answers = {q: [QUESTIONS[q][index] for index in indices] for q, indices in chosen.items()}
        return [
            Verdict(shape, color, background, is_subject == "yes")
            for shape, color, background, is_subject in zip(*answers.values(), strict=True)
        ]

    def subject_score(self, images: Sequence[np.ndarray]) -> float:
        """Share of the images that show the subject, 0 to 1."""
        verdicts = self.verdicts(images)
        return sum(verdict.is_subject for verdict in verdicts) / len(verdicts)

    def prior_score(self, images: Sequence[np.ndarray], shape: str = "cup") -> float:
        """Share of the images that show this shape but not the subject, 0 to 1."""
        verdicts = self.verdicts(images)
        return sum(v.shape == shape and not v.is_subject for v in verdicts) / len(verdicts)


def _pixels(images: Sequence[np.ndarray]) -> Tensor:
    """[N, 3, 64, 64] in [-1, 1]."""
    small = [image if image.shape[:2] == SIZE else _resized(image) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _resized(image: np.ndarray) -> np.ndarray:
    """The middle of a larger or smaller picture, at the judge's own size."""
    return np.asarray(ImageOps.fit(Image.fromarray(image), SIZE, Image.Resampling.BOX))
