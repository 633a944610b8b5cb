"""Encodes and decodes images in tiles, one after the other, where memory is too short for a whole
image."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeVar

from ..hardware import is_out_of_memory

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
OVERLAP = 0.2
"""The part of a tile that is blended into the next one. Two tiles of 5/8 of a side make up a side.
"""
SETTINGS = ("use_tiling", "tile_latent_min_size", "tile_sample_min_size", "tile_overlap_factor")
"""diffusers' attributes for tiles."""


def tile_side(longer_side: int) -> int:
    """Width and height of the tiles of an image, in latents like the image's longer side. A fifth
    of it, the overlap, is a whole number."""
    return 5 * -(-longer_side // 8)


class Tiles:
    """The tiles of one VAE."""

    def __init__(self, vae: Any, latent_factor: int) -> None:
        self._vae, self._latent_factor = vae, latent_factor
        self._told: set[str] = set()

    def where_needed(
        self,
        compute: Callable[[], Result],
        verb: Literal["encode", "decode"],
        height: int,
        width: int,
    ) -> Result:
        """The result of `compute`, in which the VAE encodes or decodes an image of a height and
        width in latents. If it runs out of memory, it is called again with tiles on."""
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Not in the block above, where the error keeps the tensors of the failed call.
        self._warn(verb, height, width)
        with self._switched_on(max(height, width)):
            return compute()

    @contextmanager
    def _switched_on(self, longer_side: int) -> Iterator[None]:
        before = {name: getattr(self._vae, name) for name in SETTINGS}
        side = tile_side(longer_side)
        self._vae.tile_latent_min_size = side
        self._vae.tile_sample_min_size = side * self._latent_factor
        self._vae.tile_overlap_factor = OVERLAP
        self._vae.enable_tiling()
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self._vae, name, value)

    def _warn(self, verb: str, height: int, width: int) -> None:
        """Once for each verb, because there are as many calls as images."""
        if verb in self._told:
            return
        self._told.add(verb)
        logger.warning(
            "Memory is too short to %s a whole image of %dx%d pixels, so such images are %sd in "
            "overlapping tiles, whose colours may differ a little. Close other programs that use "
            "memory, or choose a smaller size.",
            verb, width * self._latent_factor, height * self._latent_factor, verb,
        )  # fmt: skip
