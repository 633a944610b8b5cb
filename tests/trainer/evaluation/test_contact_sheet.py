"""The contact sheet shows each photo as it is trained."""

import numpy as np
from PIL import Image

from trainer.data.cropping import place
from trainer.data.training_images import TrainingImage
from trainer.evaluation.contact_sheet import COLUMNS, SIDE, contact_sheet
from trainer.evaluation.plots import GAP

RED = (220, 30, 30)


def photo(size=(64, 64), shares=None, *, mirrored=False):
    placement = place(size, size, is_mirrored=mirrored)
    return TrainingImage([Image.new("RGB", size, RED)], placement, shares, is_enlarged=False)


def fields(sheet, count):
    """The pixels [SIDE, SIDE, 3] of each photo."""
    pixels = np.asarray(sheet).astype(int)
    top = np.argmax((pixels != 255).any(axis=(1, 2)))
    lefts = [2 * GAP + column * (SIDE + GAP) for column in range(count)]
    return [pixels[top : top + SIDE, left : left + SIDE] for left in lefts]


def test_what_is_outside_a_mask_is_dark_and_striped():
    shares = np.zeros((SIDE, SIDE))
    shares[:, : SIDE // 2] = 1
    (field,) = fields(contact_sheet([("a.jpg", photo((SIDE, SIDE), shares))]), 1)
    inside, outside = field[:, : SIDE // 2 - 8], field[:, SIDE // 2 + 8 :]
    assert (inside == RED).all()
    assert outside[..., 0].max() < 120
    assert outside[..., 1].std() > 5


def test_photos_without_masks_keep_their_colours_and_shape():
    (field,) = fields(contact_sheet([("a.jpg", photo((32, 64)))]), 1)
    middle = SIDE // 2
    assert tuple(field[middle, middle]) == RED
    assert tuple(field[middle, 10]) == (255, 255, 255)


def test_rows_have_a_fixed_number_of_photos():
    sizes = [contact_sheet([("a", photo())] * count).size for count in (1, COLUMNS, COLUMNS + 1)]
    assert sizes[0][0] < sizes[1][0] == sizes[2][0]
    assert sizes[0][1] == sizes[1][1] < sizes[2][1]
