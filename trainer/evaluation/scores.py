"""Scores of images of a subject, per image and on average. The formulas are in `metrics.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import metrics
from .encoders import ImageEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Scores of images, in their order. Scores from different encoders cannot be compared."""

    subject: tuple[float, ...]
    """The image's mean cos with all photos."""
    nearest: tuple[float, ...]
    """Its cos with the photo that it is most like."""
    nearest_photo: tuple[int, ...]
    """The index of that photo, from 0."""
    prompt: tuple[float, ...] | None
    """Its cos with its prompt; None without prompts, or if the encoder has no text encoder."""
    diversity: float | None
    """Of all images together; None if no prompt has two or more images."""

    @property
    def means(self) -> Mapping[str, float]:
        """The measures of `metrics.py` by name; without those that are not available."""
        found = {
            "subject fidelity": statistics.fmean(self.subject),
            "prompt fidelity": statistics.fmean(self.prompt) if self.prompt else None,
            "memorisation": statistics.fmean(self.nearest),
            "diversity": self.diversity,
        }
        return {name: value for name, value in found.items() if value is not None}

    def rows(self, titles: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
        """Each image's title with its scores, then "mean" with the means."""
        by_measure = {"subject fidelity": self.subject, "prompt fidelity": self.prompt or (),
                      "memorisation": self.nearest}  # fmt: skip
        by_image = [
            (title, {name: values[index] for name, values in by_measure.items() if values})
            for index, title in enumerate(titles)
        ]
        return [*by_image, ("mean", self.means)]

    def caption(self, index: int) -> str:
        """One image's scores, as text to show below it."""
        parts = [f"subject {self.subject[index]:.2f}"]
        if self.prompt:
            parts.append(f"prompt {self.prompt[index]:.2f}")
        return ", ".join(parts)


def table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Titled scores as a text table with one line per title; "-" for a missing score."""
    names = list(dict.fromkeys(name for _, measures in rows for name in measures))
    cells = [["", *names]] + [
        [title, *(f"{found[name]:.3f}" if name in found else "-" for name in names)]
        for title, found in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        [first.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(rest, widths[1:], strict=True))]
        for first, *rest in cells
    ]
    return "\n".join("  ".join(line).rstrip() for line in lines)


class ImageScorer:
    """Scores images against photos of the subject and against the images' prompts."""

    def __init__(
        self, encoder: ImageEncoder, photos: Sequence[np.ndarray], prompts: Sequence[str] = ()
    ) -> None:
        """`photos`: images [H, W, 3] uint8 of any sizes. `prompts`: one for each image to score, or
        one for all of them; if empty, the images count as having the same unknown prompt. Raises
        ValueError for prompts that the encoder cannot embed."""
        self.encoder, self.prompts = encoder, prompts
        self.photos: Tensor = encoder.embed_images(photos)
        """[M, D]"""
        self._prompt_embeddings = encoder.embed_prompts(prompts) if prompts else None
        """[N, D], or [1, D] for all images; None without prompts or a text encoder."""

    def score(self, images: Sequence[np.ndarray]) -> Scores:
        """Score images [H, W, 3] uint8. Raises ValueError if their number differs from that of the
        prompts, and for embeddings that `metrics.py` cannot use."""
        if len(self.prompts) not in (0, 1, len(images)):
            raise ValueError(
                f"There are {len(images)} images and {len(self.prompts)} prompts. Give one prompt "
                "for each image, one for all of them, or none."
            )
        embeddings = self.encoder.embed_images(images)
        nearest_photo, nearest = metrics.nearest_photos(embeddings, self.photos)
        has_own_prompts = len(self.prompts) == len(images)
        groups = list(self.prompts) if has_own_prompts else [""] * len(images)
        has_pair = len(set(groups)) < len(groups)
        return Scores(
            subject=tuple(metrics.cosines(embeddings, self.photos).mean(axis=1).tolist()),
            nearest=tuple(nearest.tolist()),
            nearest_photo=tuple(nearest_photo.tolist()),
            prompt=self._prompt_scores(embeddings),
            diversity=metrics.diversity(embeddings, groups) if has_pair else None,
        )

    def _prompt_scores(self, images: Tensor) -> tuple[float, ...] | None:
        """The cos of each image with its prompt, from embeddings [N, D]."""
        if self._prompt_embeddings is None:
            return None
        prompts = self._prompt_embeddings.expand(len(images), -1)
        pairs = zip(torch.split(images, 1), torch.split(prompts, 1), strict=True)
        return tuple(metrics.prompt_fidelity(image, prompt) for image, prompt in pairs)
