"""Latents of the photos and class images of a run. The base model draws the class images if the
user provides none."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from .. import memory, precision
from ..data.examples import Example, find_examples, warn_of_cut_captions, with_mirrors
from ..data.latents import CachedLatents, encode_examples
from ..families.base import ModelFamily
from ..families.tokenizer import has_placeholder
from ..observer import Observer
from ..processes import ALONE, Processes
from ..sampling.class_images import make_class_images, warn_of_other_clip_skip
from ..settings.config import DatasetConfig, TrainingConfig

logger = logging.getLogger(__name__)

LatentsOf = dict[Example, CachedLatents]
WITHOUT_ALPHA = (
    "dataset.masks is alpha, but no photo is transparent or has a mask file, so all of each photo "
    "is trained on its own background. Use photos with transparency, or set dataset.masks to auto."
)


def encode_images(
    photos: list[Example],
    config: TrainingConfig,
    model: ModelFamily,
    observer: Observer,
    processes: Processes = ALONE,
) -> tuple[LatentsOf, LatentsOf]:
    """Return the latents of the photos and of the class images, after drawing missing class images.
    The second is empty if the prior weight is 0. The processes share the drawing."""
    _require_class_prompt(config, model)
    own = own_class_images(config)
    _warn_of_shared_prompt(photos, [e.captions[0] for e in own] or [config.prior.prompt], config)
    warn_of_cut_captions(photos, model.tokenizer.newly_cut_text)
    _log_numbers(photos, own)
    if config.dataset.mirror:
        photos = with_mirrors(photos)
    instance = _encode(photos, config.dataset, config.seed, model, observer)
    if config.dataset.masks == "alpha" and all(each.weights is None for each in instance.values()):
        logger.warning(WITHOUT_ALPHA)
    if config.prior.weight == 0:
        return instance, {}
    class_images = own or _drawn_class_images(config, model, observer, processes)
    warn_of_cut_captions(class_images, model.tokenizer.newly_cut_text)
    warn_of_other_clip_skip(model, [example.path for example in class_images])
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


def _log_numbers(photos: Sequence[Example], class_images: Sequence[Example]) -> None:
    captions = sum(photo.has_own_caption for photo in photos)
    masks = sum(photo.mask is not None for photo in photos)
    logger.info(
        "Training on %d photo%s, %d with captions of their own%s%s.",
        len(photos), "" if len(photos) == 1 else "s", captions,
        f", {masks} with masks" if masks else "",
        f", and on your class images ({len(class_images)})" if class_images else "",
    )  # fmt: skip


def _warn_of_shared_prompt(
    photos: Sequence[Example], class_captions: Sequence[str], config: TrainingConfig
) -> None:
    """Log a warning if a photo and a class image have the same caption. Not an error: a run that
    began so must remain possible to resume, and some do it on purpose."""
    if not config.prior.is_on:
        return
    theirs = {_plain(caption) for caption in class_captions}
    shared = [text for photo in photos for text in photo.captions if _plain(text) in theirs]
    if shared and config.prior.weight == 0:
        logger.warning(
            "The photos have the class prompt, '%s', so the teacher holds back what they teach. "
            "Put a rare word into dataset.prompt, such as 'a photo of sks dog', and leave it out "
            "of prior.prompt.", shared[0],
        )  # fmt: skip
    elif shared:
        logger.warning(
            "Photos and class images have the same prompt, '%s', so the class images teach the "
            "opposite of the photos. Put a rare word into dataset.prompt, such as 'a photo of "
            "sks dog', and leave it out of prior.prompt.", shared[0],
        )  # fmt: skip


def _plain(prompt: str) -> str:
    return " ".join(prompt.casefold().split()).strip(" .,")


def _require_class_prompt(config: TrainingConfig, model: ModelFamily) -> None:
    """Raises ValueError if the class prompt contains the placeholder of an embedding."""
    prompt = config.prior.prompt
    for placeholder in model.learned_vectors if config.prior.is_on else ():
        if has_placeholder(prompt, placeholder):
            raise ValueError(
                f"prior.prompt is {prompt!r}, but its placeholder {placeholder!r} stands for the "
                "subject. Name only the class, such as 'a photo of a dog'."
            )


def own_class_images(config: TrainingConfig, *, quiet: bool = False) -> list[Example]:
    """The user's class images; [] if there are none or they are not used. `quiet` as in
    `find_examples`."""
    prior = config.prior
    if prior.weight == 0 or not prior.images:
        return []
    return find_examples(prior.images, prior.prompt, is_prior=True, quiet=quiet)


def _drawn_class_images(
    config: TrainingConfig, model: ModelFamily, observer: Observer, processes: Processes
) -> list[Example]:
    with precision.autocast(config.precision, model.device):
        paths = make_class_images(
            model,
            config.prior,
            config.output.folder / "class_images",
            resolution=config.dataset.resolution or model.native_resolution,
            observer=observer,
            processes=processes,
        )
    return find_examples(paths, config.prior.prompt, is_prior=True)
