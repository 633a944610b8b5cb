"""The image encoder of the toy world: a small classifier of what an image shows.

Shapes: N images or prompts, D = 128 features."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from ..families.files import CheckpointFile

ANSWERS_KEY = "dreambooth.answers"
"""In the metadata of the classifier's file: JSON with the answers to each question, in order."""
IMAGE_SIZE = (64, 64)
NAMED_IN_PROMPTS = ("shape", "color", "background")
"""The questions whose answers are words of prompts."""


class AttributeClassifier(nn.Module):
    """Maps pixels [B, 3, 64, 64] in [-1, 1] to logits [B, number of answers] for each question."""

    def __init__(self, answers: Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 96, 128), []
        for before, after in zip(widths, widths[1:], strict=False):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after)]
            layers += [nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 128), nn.ReLU())
        self.heads = nn.ModuleDict(
            {question: nn.Linear(128, len(choices)) for question, choices in answers.items()}
        )

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        features = self.features(pixels)
        return {question: head(features) for question, head in self.heads.items()}


class ToyEncoder:
    """Embeds images of the toy world as the classifier's features, and prompts by the answers that
    they name."""

    def __init__(self, source: CheckpointFile) -> None:
        """`source`: a file whose metadata has `ANSWERS_KEY`."""
        self.answers: dict[str, list[str]] = json.loads(source.metadata[ANSWERS_KEY])
        with torch.random.fork_rng(devices=[]):  # building layers advances torch's generator
            self.classifier = AttributeClassifier(self.answers)
        weights = {key: source.tensor(key) for key in source.shapes}
        self.classifier.load_state_dict(
            {key: w.float() if w.is_floating_point() else w for key, w in weights.items()}
        )
        self.classifier.eval()

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """[N, D] of images [H, W, 3] uint8."""
        features: Tensor = self.classifier.features(to_pixels(images))
        return features

    @torch.no_grad()
    def embed_prompts(self, prompts: Sequence[str]) -> Tensor:
        """[N, D]: the sum of the directions of the answers that a prompt names, such as cup, red
        and beach. Raises ValueError for a prompt that names none."""
        return torch.stack([self._embed_prompt(prompt) for prompt in prompts])

    def _embed_prompt(self, prompt: str) -> Tensor:
        words, directions = set(re.findall(r"\w+", prompt.lower())), []
        for question in NAMED_IN_PROMPTS:
            weights: Any = self.classifier.heads[question].weight
            # Only the differences between the logits of a question matter.
            relative = nn.functional.normalize(weights - weights.mean(dim=0), dim=1)
            choices = self.answers[question]
            directions += [relative[i] for i, answer in enumerate(choices) if answer in words]
        if not directions:
            raise ValueError(
                f"The prompt {prompt!r} names nothing of the toy world. Name a shape "
                f"({', '.join(self.answers['shape'])}), a colour or a background."
            )
        return torch.stack(directions).sum(dim=0)


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """[N, 3, 64, 64] in [-1, 1] of images [H, W, 3] uint8, cropped to their centre and resized."""
    small = [image if image.shape[:2] == IMAGE_SIZE else _resize(image) for image in images]
    return torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _resize(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageOps.fit(Image.fromarray(image), IMAGE_SIZE, Image.Resampling.BOX))
