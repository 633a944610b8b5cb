"""The MASKs that are connected to Load Instance Images. Independent of ComfyUI.

Shapes: B batch, H W pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

IMAGE, MASK = "image", "mask"
"""The beginnings of the inputs' names. A mask belongs to the images of the same number."""
Batches = Sequence[Tensor]


def masks_of(
    images: Mapping[str, Batches], masks: Mapping[str, Batches]
) -> dict[str, list[Tensor]]:
    """A mask [H, W] for each image [B, H, W, 3] of each input that has a mask, by the name of the
    input of images. Raises ValueError for masks without images, in other numbers, and all black."""
    found = {}
    for name, batches in masks.items():
        images_name = IMAGE + name.removeprefix(MASK)
        if images_name not in images:
            raise ValueError(
                f"{name} is connected, but {images_name} is not. A mask belongs to the images of "
                "the same number. The masks of photos in a folder are files beside them, such as "
                "dog-mask.png."
            )
        singles = [mask for batch in batches for mask in _single(batch)]
        count = sum(len(batch) for batch in images[images_name])
        _check(name, singles, images_name, count)
        found[images_name] = singles * count if len(singles) == 1 else singles
    return found


def _single(batch: Tensor) -> Batches:
    """The masks [H, W] of a MASK, which may lack its first dimension."""
    return list(batch) if batch.ndim > 2 else [batch]


def _check(name: str, masks: Batches, images_name: str, count: int) -> None:
    if len(masks) not in (1, count):
        raise ValueError(
            f"{name} has {len(masks)} masks, but {images_name} has {count} images. Connect one "
            "mask for each image, or one for all."
        )
    if not all(mask.any() for mask in masks):
        raise ValueError(
            f"{name} has a mask that is black everywhere, so nothing of its photo would be "
            "learned. White is learned. Load Image gives such a mask for an image without "
            "transparency, and for others the background: use Invert Mask."
        )
