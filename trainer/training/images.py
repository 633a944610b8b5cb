"""Latents of the photos and class images of a run. The base model draws the class images if the
user provides none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from .. import memory, precision
from ..data.examples import Example, find_examples, warn_of_cut_captions, with_mirrors
from ..data.latents import CachedLatents, encode_examples
from ..families.base import ModelFamily
from ..families.tokenizer import has_placeholder
from ..observer import Observer
from ..sampling.class_images import make_class_images
from ..settings.config import DatasetConfig, TrainingConfig

LatentsOf = dict[Example, CachedLatents]


def encode_images(
    photos: list[Example], config: TrainingConfig, model: ModelFamily, observer: Observer
) -> tuple[LatentsOf, LatentsOf]:
    """Return the latents of the photos and of the class images, after drawing missing class images.
    The second is empty if the prior weight is 0."""
    warn_of_cut_captions(photos, model.tokenizer.cut_text)
    if config.dataset.mirror:
        photos = with_mirrors(photos)
    instance = _encode(photos, config.dataset, config.seed, model, observer)
    if config.prior.weight == 0:
        return instance, {}
    _require_class_prompt(config.prior.prompt, model)
    class_images = find_examples(
        _class_images(config, model, observer), config.prior.prompt, is_prior=True
    )
    warn_of_cut_captions(class_images, model.tokenizer.cut_text)
    # Blurry class images do not affect the likeness of the subject, so small ones are accepted.
    dataset = replace(config.dataset, allow_upscaling=True)
    return instance, _encode(class_images, dataset, config.seed, model, observer)


def _encode(
    examples: Sequence[Example],
    dataset: DatasetConfig,
    seed: int,
    model: ModelFamily,
    observer: Observer,
) -> LatentsOf:
    resolution = dataset.resolution or model.native_resolution
    with memory.explained(
        "while the images were encoded", lambda: f"Lower dataset.resolution (now {resolution})."
    ):
        return encode_examples(examples, dataset, model, observer, seed=seed)


def _require_class_prompt(prompt: str, model: ModelFamily) -> None:
    """Raises ValueError if the prompt contains the placeholder of an embedding."""
    for placeholder in model.learned_vectors:
        if has_placeholder(prompt, placeholder):
            raise ValueError(
                f"prior.prompt is {prompt!r}, but its placeholder {placeholder!r} stands for the "
                "subject. Name only the class, such as 'a photo of a dog'."
            )


def _class_images(config: TrainingConfig, model: ModelFamily, observer: Observer) -> Sequence[Path]:
    if config.prior.images:
        return config.prior.images
    with precision.autocast(config.precision, model.device):
        return make_class_images(
            model,
            config.prior,
            config.output.folder / "class_images",
            resolution=config.dataset.resolution or model.native_resolution,
            observer=observer,
        )
