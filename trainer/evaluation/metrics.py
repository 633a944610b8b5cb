"""Measures of how well images show a subject, computed from embeddings. The encoders are in
`encoders.py`.

The measures follow the DreamBooth paper (Ruiz et al., arXiv 2208.12242, section 4). Their values
depend on the encoder: those of DINO, CLIP and the toy's classifier cannot be compared. The paper
averages over 30 subjects with 25 prompts and 4 images each; averaging is up to the caller.

Shapes: N images, M photos, D embedding width. Embeddings are arrays or tensors; only their
direction counts. cos(a, b) = a . b / (|a| |b|). Each function raises ValueError for embeddings that
are missing, zero, NaN or infinite, or that differ in width."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

Embeddings = ArrayLike | Tensor
"""[N, D]."""


def cosines(images: Embeddings, others: Embeddings) -> np.ndarray:
    """cos of each image with each of the others [N, M], in float64."""
    ours, theirs = _normalize(images), _normalize(others)
    if ours.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"Embeddings of width {ours.shape[1]} and {theirs.shape[1]} cannot be compared. "
            "Compute them all with the same encoder."
        )
    return np.clip(ours @ theirs.T, -1, 1)


def subject_fidelity(images: Embeddings, photos: Embeddings) -> float:
    """The mean cos over all pairs of an image of the subject and a photo: the paper's DINO or
    CLIP-I, depending on the encoder. Higher is more alike, up to about the `likeness` of the photos
    to each other."""
    return float(cosines(images, photos).mean())


def prompt_fidelity(images: Embeddings, prompts: Embeddings) -> float:
    """The mean cos of each image with its own prompt [N, D], row by row: the paper's CLIP-T. Higher
    follows the prompts better."""
    ours, theirs = _normalize(images), _normalize(prompts)
    if ours.shape != theirs.shape:
        raise ValueError(
            f"Images {list(ours.shape)} and prompts {list(theirs.shape)} do not match. Provide one "
            "prompt for each image, embedded by the same encoder."
        )
    return float((ours * theirs).sum(axis=1).mean())


def prompt_contrast(images: Embeddings, prompts: Embeddings) -> float | None:
    """The mean cos of each image with its own prompt [N, D] minus its mean cos with the other
    prompts. None if all prompts are the same.

    It measures whether images follow the differences between prompts: it is 0 if they do not depend
    on the prompt, even if they show what all prompts have in common. This is not a measure of the
    paper: a model can raise the paper's CLIP-T by drawing nothing but the subject.
    """
    ours, theirs = _normalize(images), _normalize(prompts)
    found = cosines(ours, theirs)
    is_other = ~np.isclose(theirs @ theirs.T, 1, atol=1e-6)
    if not is_other.any():
        return None
    others = np.where(is_other, found, 0).sum(axis=1) / np.maximum(is_other.sum(axis=1), 1)
    return float((np.diag(found) - others)[is_other.any(axis=1)].mean())


def prior_preservation(class_images: Embeddings, photos: Embeddings) -> float:
    """The mean cos over all pairs of a class image and a photo of the subject: the paper's PRES,
    which uses DINO. Lower is better: it rises as all members of the class become like the subject.
    """
    return subject_fidelity(class_images, photos)


def diversity(images: Embeddings, prompts: Sequence[Hashable] | None = None) -> float:
    """The mean of 1 - cos over all pairs of images with the same prompt, averaged over the prompts
    with two or more images. Higher is more varied.

    It corresponds to the paper's DIV, but its values differ. The paper uses LPIPS (Zhang et al.,
    arXiv 1801.03924), which compares feature maps position by position. Embeddings compare images
    as a whole, so the same object in another place does not count as different.

    `prompts` has one entry for each image; None: all images have the same prompt.
    """
    units = _normalize(images)
    names = [None] * len(units) if prompts is None else list(prompts)
    if len(names) != len(units):
        raise ValueError(
            f"There are {len(units)} images and {len(names)} prompts. Provide one prompt for each "
            "image."
        )
    groups = [
        [i for i, other in enumerate(names) if other == name] for name in dict.fromkeys(names)
    ]
    varied = [1 - likeness(units[group]) for group in groups if len(group) > 1]
    if not varied:
        raise ValueError(
            "No prompt has two or more images, so there is nothing to compare. Draw several images "
            "per prompt."
        )
    return float(np.mean(varied))


def distance_between_means(start: Embeddings, goal: Embeddings) -> float:
    """The distance, 0 to 2, between the means of two sets of embeddings scaled to length 1."""
    return float(np.linalg.norm(_mean(goal) - _mean(start)))


def progress(images: Embeddings, start: Embeddings, goal: Embeddings) -> float:
    """The share of the way from `start` to `goal` that images have covered on average:

        (mean of images - mean of start) . (mean of goal - mean of start)
            / |mean of goal - mean of start|^2

    with embeddings of length 1. 0 for images like `start`, 1 for images like `goal`. This is not a
    measure of the paper: a cosine with the goal has covered most of its range when this is at one
    half. Raises ValueError if start and goal have the same mean.
    """
    origin, target = _mean(start), _mean(goal)
    if origin.shape != target.shape or np.allclose(origin, target, atol=1e-9):
        raise ValueError(
            "The embeddings of start and goal are the same or differ in width, so progress between "
            "them cannot be measured. Choose another encoder, or other images."
        )
    direction = target - origin
    return float((_mean(images) - origin) @ direction / (direction @ direction))


def _mean(embeddings: Embeddings) -> np.ndarray:
    mean: np.ndarray = _normalize(embeddings).mean(axis=0)
    return mean


def likeness(images: Embeddings) -> float:
    """The mean cos over all pairs of different images. Raises ValueError for fewer than two."""
    units = _normalize(images)
    number = len(units)
    if number < 2:
        raise ValueError("A single image cannot be compared with others. Provide two or more.")
    # The sum over all ordered pairs, minus each image's cosine with itself, which is 1.
    return float((np.square(units.sum(axis=0)).sum() - number) / (number * (number - 1)))


def nearest_photos(images: Embeddings, photos: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """The index of the photo that each image is most like [N], and their cos [N]."""
    found = cosines(images, photos)
    nearest = found.argmax(axis=1)
    return nearest, found[np.arange(len(found)), nearest]


def memorisation(images: Embeddings, photos: Embeddings) -> float:
    """The mean cos of each image with the photo that it is most like. Near 1, the model reproduces
    the photos instead of the subject; `nearest_photos` tells which ones."""
    return float(nearest_photos(images, photos)[1].mean())


def _normalize(embeddings: Embeddings) -> np.ndarray:
    """[N, D] in float64, each row of length 1."""
    if isinstance(embeddings, Tensor):
        embeddings = embeddings.detach().cpu().double().numpy()
    array = np.asarray(embeddings, dtype=np.float64)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(
            f"Embeddings must have the shape [images, width], got {list(array.shape)}. Provide at "
            "least one image."
        )
    lengths = np.linalg.norm(array, axis=1)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise ValueError(
            "An embedding is zero, infinite or not a number (NaN), so it has no direction. Check "
            "the images and the encoder's file."
        )
    return array / lengths[:, None]
