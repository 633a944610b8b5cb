"""Rewords the trainer's errors for the nodes: they name settings, but users see widgets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..trainer import packages
from ..trainer.console import plain

WIDGETS = {
    "dataset.prompt": "instance_prompt of Load Instance Images",
    "dataset.resolution": "resolution of Load Instance Images",
    "dataset.allow_upscaling": "allow_upscaling of Load Instance Images",
    "dataset.buckets": "buckets of Load Instance Images",
    "dataset.background": "background of Load Instance Images",
    "dataset.masks": "use_masks of Load Instance Images",
    "dataset.unmasked_weight": "unmasked_weight of Load Instance Images",
    "dataset.random_backgrounds": "random_backgrounds of Load Instance Images",
    "prior.prompt": "class_prompt",
    "prior.teacher_weight": "teacher_weight of Optimizer Settings",
    "prior.images": "images of Generate Class Priors",
    "prior.weight": "prior_weight of DreamBooth Train",
    "optimizer.name": "optimizer of Optimizer Settings",
    "optimizer.lr_schedule": "lr_schedule of Optimizer Settings",
    "optimizer.warmup_steps": "warmup_steps of Optimizer Settings",
    "optimizer.anchor": "anchor of Optimizer Settings",
    "optimizer.learning_rate": "learning_rate",
    "preview.prompts": "prompts of Preview Settings",
    "scoring.class_prompt": "class_prompt of Preview Settings",
    "output.dtype": "file_dtype of Optimizer Settings",
    "output.private": "private of Optimizer Settings",
    "output.name": "name",
}
"""The widget of each setting, without the node if several nodes have it."""
_SETTING = re.compile(rf"\b({'|'.join(map(re.escape, WIDGETS))})\b")


@contextmanager
def naming_widgets() -> Iterator[None]:
    """Make errors raised inside, or in the decorated function, name widgets instead of settings."""
    try:
        yield
    except Exception as error:
        if text := packages.explain(error):
            raise RuntimeError(text) from error
        error.args = tuple(reword(part) if isinstance(part, str) else part for part in error.args)
        raise


def reword(text: str) -> str:
    """The text with the names of widgets instead of settings, and without control characters."""
    return plain(_SETTING.sub(lambda setting: WIDGETS[setting[0]], text))
