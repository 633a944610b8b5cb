"""The endless, seeded stream of batches that a run trains on.

The loss of a step is the sum of `weights` times the squared errors: the mean over the photos plus
the prior weight times the mean over the class images, as in diffusers' DreamBooth script. kohya's
sd-scripts averages over photos and class images together, which is half as much with equally many
of each. With optimizers that depend on the size of the loss, a learning rate tuned there acts as if
it were doubled here.

Shapes: B batch, C latent channels, h w latents."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ..families.base import Framing
from ..noise import STABLE_DIFFUSION, NoiseProcess, draw_noise
from ..processes import ALONE, Processes
from ..settings.config import TrainingConfig
from .batch import Batch, join
from .examples import Example
from .latents import CachedLatents

logger = logging.getLogger(__name__)


class BatchStream(Iterator[list[Batch]]):
    """Yields micro steps without end. Each is a list of batches, one per shape of latents, in the
    order in which the shapes were drawn.

    A micro step holds `batch_size` photos. The class images of an optimizer step, `prior.ratio` per
    photo and at least one, are spread over its micro steps as evenly as possible. Some of the
    photos, `prior.teacher_ratio` of them, come a second time with the class prompt, for the
    teacher; if that is less than one photo per step, one photo does in every few steps. Photos and
    class images use separate generators, so class images do not change what is drawn for the
    photos. Examples are drawn one at a time, so four micro steps of one photo draw the same as one
    micro step of four.

    If several processes train together, each of them draws all examples and trains on its share of
    each optimizer step, so the examples and draws do not depend on the number of processes.
    """

    def __init__(
        self,
        instance: Mapping[Example, CachedLatents],
        prior: Mapping[Example, CachedLatents],
        config: TrainingConfig,
        *,
        noise: NoiseProcess = STABLE_DIFFUSION,
        processes: Processes = ALONE,
    ) -> None:
        if not instance:
            raise ValueError("There are no photos to train on. Name some in dataset.photos.")
        if config.prior.weight > 0 and not prior:
            raise ValueError(
                f"prior.weight is {config.prior.weight:g} but there are no class images. Name a "
                "folder of them in prior.images, or set prior.weight to 0."
            )
        photos = config.photos_per_step
        class_images = class_images_per_step(config)
        if class_images > round(photos * config.prior.ratio):
            logger.warning(
                "prior.ratio %g is less than half a class image per step, so each step has one. "
                "Raise batch_size to train on fewer.", config.prior.ratio,
            )  # fmt: skip
        self._config = config
        self._instance = _Pool(instance, "photos", config, noise)
        self._prior = _Pool(prior, "class images", config, noise)
        self._instance_weight = 1 / photos
        self._class_images_per_step = class_images
        self._prior_weight = config.prior.weight / max(1, class_images)
        self._taught_per_step = taught_per_step(config)
        self._steps_per_teaching = steps_per_teaching(config)
        self._processes = processes
        self._micro_step = 0
        self._steps_since_teaching = 0

    def __next__(self) -> list[Batch]:
        size = self._config.batch_size
        draws = [self._instance.draw(self._instance_weight) for _ in range(size)]
        taught = self._taught(draws)
        draws += [self._prior.draw(self._prior_weight) for _ in range(self._class_images_now())]
        draws += taught
        groups: dict[torch.Size, list[Batch]] = {}
        before = self._micro_step * size + self._class_images_before(self._micro_step)
        before += self._taught_before(self._micro_step * size)
        for draw in self._processes.share_of(draws, before=before):
            groups.setdefault(draw.latents.shape, []).append(draw)
        self._micro_step = (self._micro_step + 1) % self._config.gradient_accumulation
        if self._micro_step == 0:
            steps = self._steps_since_teaching + 1
            self._steps_since_teaching = steps % self._steps_per_teaching
        return [join(group) for group in groups.values()]

    @property
    def images_per_step(self) -> int:
        """The number of photos and class images of an optimizer step."""
        return images_per_step(self._config)

    @property
    def captions(self) -> list[tuple[str, Framing]]:
        """Every caption that a batch can contain, with the framing of its image."""
        asked = [(self._config.prior.prompt, framing) for _, framing in self._instance.captions]
        return [
            *self._instance.captions,
            *self._prior.captions,
            *(asked if self._taught_per_step else ()),
        ]

    def state(self) -> dict[str, Any]:
        """The position of the stream, in tensors and plain values."""
        return {
            "micro_step": self._micro_step,
            "steps_since_teaching": self._steps_since_teaching,
            "photos": self._instance.state(),
            "class_images": self._prior.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from where `state()` was called. Raises ValueError if the number of images has
        changed since."""
        self._instance.load_state(state["photos"])
        self._prior.load_state(state["class_images"])
        self._micro_step = state["micro_step"]
        # Older states lack this.
        self._steps_since_teaching = state.get("steps_since_teaching", 0)

    def _taught(self, photos: list[Batch]) -> list[Batch]:
        """Those of a micro step's photos that the teacher is asked about, with the class prompt.
        Which ones does not depend on how a step is divided into micro steps."""
        weight = self._config.prior.teacher_weight / max(1, self._taught_per_step)
        first = self._micro_step * self._config.batch_size
        return [
            replace(
                photo,
                weights=torch.tensor([weight]),
                is_prior=torch.tensor([True]),
                captions=[self._config.prior.prompt],
                place_weights=None,  # the class is kept everywhere
                num_taught=1,
            )
            for number, photo in enumerate(photos, start=first)
            if self._taught_before(number + 1) > self._taught_before(number)
        ]

    def _taught_before(self, photo: int) -> int:
        """How many of the step's photos before this one the teacher is asked about."""
        if self._steps_since_teaching:
            return 0
        photos = self._config.photos_per_step
        return self._taught_per_step * photo // photos

    def _class_images_now(self) -> int:
        """The number of class images in the next micro step."""
        after = self._class_images_before(self._micro_step + 1)
        return after - self._class_images_before(self._micro_step)

    def _class_images_before(self, micro_step: int) -> int:
        """The number of class images in the earlier micro steps of an optimizer step."""
        return self._class_images_per_step * micro_step // self._config.gradient_accumulation


def class_images_per_step(config: TrainingConfig) -> int:
    """The number of class images of an optimizer step."""
    if config.prior.weight == 0:
        return 0
    photos = config.photos_per_step
    return max(1, round(photos * config.prior.ratio))


def taught_per_step(config: TrainingConfig) -> int:
    """The most photos of an optimizer step that the teacher is asked about."""
    if config.prior.teacher_weight == 0:
        return 0
    return max(1, round(config.photos_per_step * config.prior.teacher_ratio))


def steps_per_teaching(config: TrainingConfig) -> int:
    """The teacher is asked in the first of this many optimizer steps. Above 1 if
    `prior.teacher_ratio` is less than one photo per step."""
    return max(1, round(1 / (config.photos_per_step * config.prior.teacher_ratio)))


def images_per_step(config: TrainingConfig) -> int:
    """The least number of photos and class images of an optimizer step. Photos that the teacher is
    asked about count twice."""
    taught = taught_per_step(config) if steps_per_teaching(config) == 1 else 0
    return config.photos_per_step + class_images_per_step(config) + taught


def check_share(config: TrainingConfig, processes: Processes) -> None:
    """Raises ValueError if there are more processes than images in an optimizer step."""
    images = images_per_step(config)
    if processes.size > images:
        raise ValueError(
            f"{processes.size} processes cannot share a step of {images} images: each needs at "
            f"least one. Raise batch_size (now {config.batch_size}), or start fewer processes."
        )


class _Pool:
    """Draws examples in passes: every example once, in random order, then again in a new order."""

    def __init__(
        self,
        latents: Mapping[Example, CachedLatents],
        purpose: str,
        config: TrainingConfig,
        noise: NoiseProcess,
    ) -> None:
        self._latents = dict(latents)
        self._examples = list(latents)
        self._purpose = purpose
        self._noise_offset = config.noise_offset
        self._noise = noise
        seed = random.Random(f"{purpose} {config.seed}").getrandbits(32)
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self._position = 0

    @property
    def captions(self) -> list[tuple[str, Framing]]:
        return [
            (caption, latents.framing)
            for example, latents in self._latents.items()
            for caption in example.captions
        ]

    def draw(self, weight: float) -> Batch:
        """The next example as a batch of one, with all its random draws."""
        example, generator = self._next_example(), self._generator
        cached = self._latents[example]
        latents = cached.draw(generator)
        noise = draw_noise(tuple(latents.shape), self._noise_offset, generator)
        return Batch(
            latents=latents.unsqueeze(0),
            noise=noise.unsqueeze(0),
            times=self._noise.draw_times(1, generator),
            weights=torch.tensor([weight]),
            is_prior=torch.tensor([example.is_prior]),
            captions=[self._caption_of(example)],
            framings=[cached.framing],
            place_weights=None if cached.weights is None else cached.weights[None, None],
        )

    def _caption_of(self, example: Example) -> str:
        captions = example.captions
        if len(captions) == 1:
            return captions[0]
        return captions[int(torch.randint(len(captions), (), generator=self._generator))]

    def state(self) -> dict[str, Any]:
        return {
            "order": list(self._order),
            "position": self._position,
            "generator": self._generator.get_state(),
            "count": len(self._examples),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["count"] != len(self._examples):
            raise ValueError(
                f"The run to resume had {state['count']} {self._purpose}, now there are "
                f"{len(self._examples)}. Restore the original ones, or start a new run."
            )
        self._order, self._position = list(state["order"]), state["position"]
        self._generator.set_state(state["generator"])

    def _next_example(self) -> Example:
        if self._position == len(self._order):
            self._order = torch.randperm(len(self._examples), generator=self._generator).tolist()
            self._position = 0
        self._position += 1
        return self._examples[self._order[self._position - 1]]
