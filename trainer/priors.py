"""Class images: what the base model draws for the class prompt, made once and kept in a folder.
Only images of the very same model, prompt and settings are used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .config import PriorConfig
from .observer import Observer
from .sampling import sample_each

if TYPE_CHECKING:
    from .families.base import ModelFamily

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
PATIENCE = 8
"""Unusable images, above the usable ones, after which the model is given up."""
FLAT = 2
"""Levels of 255 within which every pixel of an image counts as the same colour."""


def make_class_images(
    model: ModelFamily, prior: PriorConfig, folder: Path, *, resolution: int, base_hash: str,
    observer: Observer | None = None,
) -> list[Path]:  # fmt: skip
    """`prior.num_images` class images, square, `resolution` pixels wide, as PNG files in a folder
    of their own below `folder`; only the missing ones are made.

    They are those of seeds `prior.sampling.seed` and up that are not black or of one colour, so an
    interrupted call and another one give what one call gives. Changing only the number or the batch
    size keeps the images; the batch size changes them by rounding. ValueError if the model hardly
    gives any.
    """
    if not prior.prompt.strip():
        raise ValueError("prior.prompt is empty. Name the class, such as 'a photo of a dog'.")
    album = _Album(folder, _definition(prior, resolution, base_hash))
    watch = _AsClassImages(observer or Observer(), total=prior.num_images)
    found = album.find()
    made, discarded = 0, 0
    while len(found) < prior.num_images:
        watch.report(len(found))
        seeds = (seed for seed in count(prior.sampling.seed + discarded_below(found)))
        ...
    return [found[seed] for seed in sorted(found)][: prior.num_images]
