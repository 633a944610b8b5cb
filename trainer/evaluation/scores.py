"""What a judge makes of pictures of a subject: picture by picture, and in the mean. The formulas
live in `metrics.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import metrics
from .encoders import ImageEncoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """Of pictures in their order. Numbers of different judges cannot be compared."""

    subject: tuple[float, ...]
    """The mean of a picture's cos with each photo."""
    nearest: tuple[float, ...]
    """Its cos with the photo that it is most like."""
    nearest_photo: tuple[int, ...]
    """Which one that is, counted from 0."""
    prompt: tuple[float, ...] | None
    """Its cos with its prompt; None without prompts, or from a judge that does not read."""
    diversity: float | None
    """None where no prompt has two pictures."""

    @property
    def means(self) -> Mapping[str, float]:
        """The measures of `metrics.py` by name, without those that there are not."""
        found = {
            "subject fidelity": statistics.fmean(self.subject),
            "prompt fidelity": statistics.fmean(self.prompt) if self.prompt else None,
            "memorisation": statistics.fmean(self.nearest),
            "diversity": self.diversity,
        }
        return {name: value for name, value in found.items() if value is not None}

    def rows(self, titles: Sequence[str]) -> list[tuple[str, Mapping[str, float]]]:
        """The pictures' titles, each with its picture's share in the means, and then the means."""
        shares = {"subject fidelity": self.subject, "prompt fidelity": self.prompt or (),
                  "memorisation": self.nearest}  # fmt: skip
        by_picture = [
            (title, {name: values[index] for name, values in shares.items() if values})
            for index, title in enumerate(titles)
        ]
        return [*by_picture, ("mean", self.means)]

    def caption(self, index: int) -> str:
        """One picture's numbers, to be written below it."""
        parts = [f"subject {self.subject[index]:.2f}"]
        if self.prompt:
            parts.append(f"prompt {self.prompt[index]:.2f}")
        return ", ".join(parts)


def table(rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Titled measures as text: a line each below a line of the measures' names, - for one that
    there is not."""
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
    """What pictures are held against: the photos of the subject and, prompt by prompt, what the
    pictures should show."""

    def __init__(
        self, encoder: ImageEncoder, photos: Sequence[np.ndarray], prompts: Sequence[str] = ()
    ) -> None:
        """`photos` [H, W, 3] uint8, of any sizes. `prompts` names each picture's to come, or one
        that is all of theirs; without any, they count as of one prompt that nobody knows.
        ValueError for prompts that the judge cannot make anything of."""
        self.encoder, self.prompts = encoder, prompts
        self.photos: Tensor = encoder.embed_images(photos)
        """[M, D]"""
        self.read = encoder.embed_prompts(prompts) if prompts else None
        """[N, D], or [1, D] for all; None from a judge that does not read."""

    def score(self, images: Sequence[np.ndarray]) -> Scores:
        """Of images [H, W, 3] uint8. ValueError if there are more or fewer than prompts, and for
        what `metrics.py` refuses."""
        if len(self.prompts) not in (0, 1, len(images)):
            raise ValueError(
                f"There are {len(images)} images and {len(self.prompts)} prompts. Give one prompt "
                "for each image, one for all of them, or none."
            )
        seen = self.encoder.embed_images(images)
        nearest_photo, nearest = metrics.nearest_photos(seen, self.photos)
        has_own = len(self.prompts) == len(images)
        groups = list(self.prompts) if has_own else [""] * len(images)
        varied = len(set(groups)) < len(groups)
        return Scores(
            subject=tuple(metrics.cosines(seen, self.photos).mean(axis=1).tolist()),
            nearest=tuple(nearest.tolist()),
            nearest_photo=tuple(nearest_photo.tolist()),
            prompt=None
            if self.read is None
            else _row_by_row(seen, self.read.expand(len(seen), -1)),
            diversity=metrics.diversity(seen, groups) if varied else None,
        )


def _row_by_row(seen: Tensor, read: Tensor) -> tuple[float, ...]:
    return tuple(
        metrics.prompt_fidelity(seen[i : i + 1], read[i : i + 1]) for i in range(len(seen))
    )
