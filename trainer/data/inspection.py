"""Looks at the photos of a run before it: advice about them, and how they will be trained."""

from __future__ import annotations

from PIL import Image

from ..settings.config import DatasetConfig
from ..storage.names import printable
from .examples import Example
from .images import on_background, parse_color
from .looks import Look, advice, is_cut, is_inverted, look_at, mask_advice
from .training_images import Layout, TrainingImage, mask_of, training_image


class Inspection:
    """Of the photos that are added to it."""

    def __init__(self, dataset: DatasetConfig, layout: Layout, *, seed: int = 0) -> None:
        """`layout` must have a `latent_factor` of 1 if its images are shown."""
        self._dataset, self._layout, self._seed = dataset, layout, seed
        self.images: list[tuple[str, TrainingImage]] = []
        """The photos by their names, as they are trained."""
        self._looks: dict[str, Look] = {}
        self._cut: list[str] = []
        self._inverted: list[str] = []

    def add(self, example: Example, image: Image.Image, *, is_shown: bool = True) -> None:
        """`image` is the photo, as `read_with_alpha` returns it. Raises the errors of
        `training_image`, for which a run would refuse it."""
        name, mask = printable(example.path.name), mask_of(example, self._dataset, image)
        opaque = on_background(image, parse_color(self._dataset.background))
        self._looks[name] = look_at(opaque, has_mask=mask is not None)
        trained = training_image(example, image, self._dataset, self._layout, seed=self._seed)
        if mask and is_cut(mask, trained.placement):
            self._cut.append(name)
        if mask and example.mask and is_inverted(mask):
            self._inverted.append(printable(example.mask.name))
        if is_shown:
            self.images.append((name, trained))

    def advice(self) -> list[str]:
        """What can be better. The resolution counts if the settings have one."""
        about_masks = mask_advice(self._cut, self._inverted)
        return [*advice(self._looks, self._dataset.resolution), *about_masks]
