"""How good pictures of a subject are, as numbers made of embeddings. What embeds them lives in
`encoders.py`.

The measures are those of the DreamBooth paper (Ruiz et al., arXiv 2208.12242, section 4) and mean
nothing without the encoder they were made with: numbers of DINO, CLIP and the toy's classifier
cannot be compared. The paper averages over 30 subjects of 25 prompts and 4 pictures each; that is
up to the caller.

Shapes: N pictures, M photos, D width. Embeddings are arrays or tensors of any length; what counts
is their direction. cos(a, b) = a . b / (|a| |b|). Each function raises ValueError for embeddings
that are none, zero or no numbers, or have different widths.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

Embeddings = ArrayLike | Tensor
"""[N, D]."""


def cosines(pictures: Embeddings, others: Embeddings) -> np.ndarray:
    """cos of each picture with each of the others [N, M], in float64."""
    ours, theirs = _unit(pictures), _unit(others)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"Embeddings of width {ours.shape[1]} and {theirs.shape[1]} cannot be compared. Make "
            "them all with the same encoder."
        )
    return np.clip(ours @ theirs.T, -1, 1)


def subject_fidelity(pictures: Embeddings, photos: Embeddings) -> float:
    """The mean of cos over all pairs of a picture of the subject and a photo: the paper's DINO and
    CLIP-I, by the encoder. Higher is more alike; real photos of one subject among themselves, by
    `likeness`, are the most that makes sense."""
    return float(cosines(pictures, photos).mean())


def prompt_fidelity(pictures: Embeddings, prompts: Embeddings) -> float:
    """The mean of cos of each picture with its own prompt [N, D], row by row: the paper's CLIP-T.
    Higher follows the prompts better."""
    ours, theirs = _unit(pictures), _unit(prompts)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"Pictures {list(ours.shape)} and prompts {list(theirs.shape)} do not go together. "
            "Give each picture its own prompt, embedded by the same encoder."
        )
    return float((ours * theirs).sum(axis=1).mean())


def prompt_contrast(pictures: Embeddings, prompts: Embeddings) -> float | None:
    """The mean of cos of each picture with its own prompt [N, D], less the mean of its cos with the
    other prompts; None where there are no others.

    It tells whether pictures follow what differs between prompts: 0 where they are the same
    whatever the prompt, however well they show what all prompts share. Ours, not the paper's, whose
    CLIP-T a model can raise by drawing nothing but the subject.
    """
    ours, theirs = _unit(pictures), _unit(prompts)
    found = cosines(ours, theirs)
    is_other = ~np.isclose(theirs @ theirs.T, 1, atol=1e-6)
    if not is_other.any():
        return None
    others = np.where(is_other, found, 0).sum(axis=1) / np.maximum(is_other.sum(axis=1), 1)
    return float((np.diag(found) - others)[is_other.any(axis=1)].mean())


def prior_preservation(class_pictures: Embeddings, photos: Embeddings) -> float:
    """The mean of cos over all pairs of a picture of the class and a photo of the subject: the
    paper's PRES, which takes DINO. Lower is better: where it rises, every member of the class comes
    to look like the subject."""
    return subject_fidelity(class_pictures, photos)


def diversity(pictures: Embeddings, prompts: Sequence[Hashable] | None = None) -> float:
    """The mean of 1 - cos over the pairs of different pictures of one prompt, then over the prompts
    that have a pair: as the paper's DIV, higher is more varied.

    The paper takes LPIPS (Zhang et al., arXiv 1801.03924), which compares a network's feature maps
    place by place; this compares pictures as a whole. So it does not count the same thing moved
    elsewhere as different, and its numbers are not the paper's. `prompts` names each picture's;
    without, all are of one.
    """
    units = _unit(pictures)
    names = [None] * len(units) if prompts is None else list(prompts)
    if len(names) != len(units):
        raise ValueError(
            f"There are {len(units)} pictures and {len(names)} prompts. Name one for each picture."
        )
    groups = [
        [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)
    ]
    varied = [1 - likeness(units[group]) for group in groups if len(group) > 1]
    if not varied:
        raise ValueError(
            "No prompt has two pictures, so there is nothing to compare. Draw several of each."
        )
    return float(np.mean(varied))


def way(start: Embeddings, goal: Embeddings) -> float:
    """How far the mean of one set of pictures lies from the mean of another, 0 to 2: the length of
    the difference of the means of their embeddings, each of length 1."""
    return float(np.linalg.norm(_mean(goal) - _mean(start)))


def progress(pictures: Embeddings, start: Embeddings, goal: Embeddings) -> float:
    """How much of the way from `start` to `goal` pictures have made in the mean, of embeddings of
    length 1:

        (mean of the pictures - mean of start) . (mean of goal - mean of start)
            / |mean of goal - mean of start|^2

    0 for pictures like `start`, 1 for such as `goal`. Ours: a cosine with the goal has made most of
    its way when half of this is made. ValueError where start and goal are the same.
    """
    origin, target = _mean(start), _mean(goal)
    if origin.shape != target.shape or np.allclose(origin, target, atol=1e-9):
        raise ValueError(
            "Start and goal are the same to this encoder, or of different ones, so there is no way "
            "between them. Choose another encoder, or other pictures."
        )
    direction = target - origin
    return float((_mean(pictures) - origin) @ direction / (direction @ direction))


def _mean(embeddings: Embeddings) -> np.ndarray:
    mean: np.ndarray = _unit(embeddings).mean(axis=0)
    return mean


def likeness(pictures: Embeddings) -> float:
    """The mean of cos over all pairs of two different pictures. ValueError for less than two."""
    units = _unit(pictures)
    number = len(units)
    if number < 2:
        raise ValueError("A single picture has nothing to be compared with. Give two or more.")
    # All pairs in both orders, less each picture with itself, which gives 1.
    return float((np.square(units.sum(axis=0)).sum() - number) / (number * (number - 1)))


def nearest_photos(pictures: Embeddings, photos: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Of each picture, the number of the photo it is most like [N], and their cos [N]."""
    found = cosines(pictures, photos)
    nearest = found.argmax(axis=1)
    return nearest, found[np.arange(len(found)), nearest]


def memorisation(pictures: Embeddings, photos: Embeddings) -> float:
    """The mean of cos of each picture with the photo it is most like. Where it comes near 1, photos
    are drawn again rather than the subject; `nearest_photos` tells which."""
    return float(nearest_photos(pictures, photos)[1].mean())


def _unit(embeddings: Embeddings) -> np.ndarray:
    """[N, D] in float64, each row of length 1."""
    if isinstance(embeddings, Tensor):
        embeddings = embeddings.detach().cpu().double().numpy()
    array = np.asarray(embeddings, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"Embeddings must have the shape [pictures, width], got {list(array.shape)}. Give at "
            "least one picture."
        )
    lengths = np.linalg.norm(array, axis=1)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError(
            "An embedding is zero, infinite or not a number (NaN), so it has no direction. Look at "
            "the pictures, and at the encoder's file."
        )
    return array / lengths[:, None]
