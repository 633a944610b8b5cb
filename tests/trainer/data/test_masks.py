"""Which files are masks, of which photos, and where they lie in what is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.data.test_folders import draw
from trainer.data.cropping import place
from trainer.data.masks import (
    loss_weights,
    mask_files,
    read_mask,
    require_subject,
    several_masks,
    shares,
    split,
    unused_masks,
)

PHOTO = Path("dog.jpg")


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def split_names(*found: str) -> tuple[list[str], dict[str, list[str]]]:
    photos, masks = split(map(Path, found))
    return names(photos), {photo.name: names(masks[photo]) for photo in masks}


# --- Files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask",
    ["dog-masklabel.png", "dog-mask.png", "dog_mask.jpg", "dog.mask.png", "dog mask.PNG",
     "DOG-Mask.png", "dog.jpg-mask.png", "dog.jpg.mask.webp"],
)  # fmt: skip
def test_each_of_these_files_is_the_mask_of_a_photo(mask):
    assert split_names(mask, "dog.jpg") == (["dog.jpg"], {"dog.jpg": [mask]})


def test_a_number_that_both_got_belongs_to_the_photo():
    """Files whose name is taken get one; a mask alone may have got it."""
    found = split_names("dog.jpg", "dog (1).jpg", "dog-mask.png", "dog-mask (1).png")
    assert found == (
        ["dog.jpg", "dog (1).jpg"],
        {"dog.jpg": ["dog-mask.png"], "dog (1).jpg": ["dog-mask (1).png"]},
    )
    assert split_names("dog.jpg", "dog-mask (1).png")[1] == {"dog.jpg": ["dog-mask (1).png"]}


@pytest.mark.parametrize("name", ["cat-mask.png", "mask.png", "dogmask.png", "dog-masked.png"])
def test_other_files_are_photos(name):
    assert split_names("dog.jpg", name) == (["dog.jpg", name], {})


def test_photos_of_one_name_share_a_mask_and_folders_are_apart():
    assert split_names("dog.jpg", "dog.png", "dog-mask.png")[1] == {
        "dog.jpg": ["dog-mask.png"], "dog.png": ["dog-mask.png"],
    }  # fmt: skip
    assert split([Path("a/dog.jpg"), Path("b/dog-mask.png")])[1] == {}


def test_a_mask_of_a_photo_that_cannot_be_read_is_no_photo():
    assert split([Path("dog-mask.png")], [Path("dog.heic")]) == ([], {})


def test_masks_are_found_beside_listed_photos(tmp_path):
    draw(tmp_path, "dog.jpg", "dog-mask.png", "dog_mask.png", "cat.jpg", ".cat-mask.png")
    (tmp_path / "cat-mask.png").write_text("no image")
    found = mask_files([tmp_path / "dog.jpg", tmp_path / "cat.jpg"])
    assert {photo.name: names(masks) for photo, masks in found.items()} == {
        "dog.jpg": ["dog-mask.png", "dog_mask.png"], "cat.jpg": ["cat-mask.png"],
    }  # fmt: skip


def test_several_masks_and_unused_ones_are_named():
    files = {PHOTO: [Path("dog-mask.png"), Path("dog_mask.png"), Path("dog.mask.png")]}
    assert list(several_masks(files)) == [
        "'dog.jpg' has several masks. Only 'dog-mask.png' is used, and not dog_mask.png, "
        "dog.mask.png. Keep one of them."
    ]
    assert list(several_masks({PHOTO: [Path("dog-mask.png")]})) == []
    (off,) = unused_masks(files, is_prior=False)
    assert off == (
        "Masks are not used, because dataset.masks is off (3): dog-mask.png, dog_mask.png, "
        "dog.mask.png. If these are photos, rename them."
    )
    (prior,) = unused_masks(files, is_prior=True)
    assert prior.startswith("Masks are not used, because class images are trained whole (3): dog-")
    assert list(unused_masks({}, is_prior=False)) == []


# --- Reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
def test_every_kind_of_image_is_a_mask(tmp_path, mode):
    levels = np.zeros((6, 8), np.uint8)
    levels[2:4, 1:5] = 255
    image = Image.fromarray(levels)
    if mode == "I;16":
        image = Image.fromarray(levels.astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "mask.png")
    found = read_mask(tmp_path / "mask.png", PHOTO, (8, 6))
    assert found.mode == "L"
    np.testing.assert_array_equal(np.asarray(found), levels)


def test_transparent_parts_of_a_mask_are_black(tmp_path):
    image = Image.new("RGBA", (4, 4), (255, 255, 255, 0))
    image.putpixel((1, 2), (255, 255, 255, 255))
    image.save(tmp_path / "mask.png")
    assert np.argwhere(np.asarray(read_mask(tmp_path / "mask.png", PHOTO, (4, 4)))).tolist() == [
        [2, 1]
    ]


@pytest.mark.parametrize("size", [(400, 300), (100, 75), (64, 48), (53, 40), (1, 1), (800, 601)])
def test_a_mask_may_have_another_size_up_to_rounding(tmp_path, size):
    Image.new("L", size, 255).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", PHOTO, (400, 300)).size == size


@pytest.mark.parametrize("size", [(300, 400), (400, 400), (64, 64), (400, 290)])
def test_a_mask_of_another_shape_is_refused(tmp_path, size):
    Image.new("L", size, 255).save(tmp_path / "dog-mask.png")
    with pytest.raises(ValueError, match="shape") as error:
        read_mask(tmp_path / "dog-mask.png", PHOTO, (400, 300))
    assert str(error.value) == (
        f"'dog-mask.png' is taken for the mask of 'dog.jpg', but has another shape: {size[0]}x"
        f"{size[1]} pixels instead of 400x300. Save the mask with the photo's width and height, "
        "both upright; if it is a photo, rename it."
    )


def test_a_photo_that_is_named_like_a_mask_is_refused(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    pixels[..., 2] //= 2
    for name, image in {"red": Image.new("RGB", (400, 300), "red"),
                        "noise": Image.fromarray(pixels)}.items():  # fmt: skip
        image.save(tmp_path / f"{name}-mask.png")
        with pytest.raises(ValueError, match="colours") as error:
            read_mask(tmp_path / f"{name}-mask.png", PHOTO, (400, 300))
    assert str(error.value) == (
        "'noise-mask.png' is taken for the mask of 'dog.jpg', but has colours. Save the mask in "
        "white and black; if it is a photo, rename it."
    )


def test_the_traces_of_compression_are_no_colours(tmp_path):
    mask = Image.new("RGB", (400, 300))
    mask.paste("white", (31, 57, 203, 211))
    mask.save(tmp_path / "mask.jpg", quality=30)
    read_mask(tmp_path / "mask.jpg", PHOTO, (400, 300))


# --- Places -------------------------------------------------------------------------------------


def averages(mask: np.ndarray, edges_down: np.ndarray, edges_across: np.ndarray) -> np.ndarray:
    """The mean of each field, from the integral of the mask, which is piecewise bilinear."""
    integral = np.pad(mask.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = map(np.arange, integral.shape)
    at_rows = np.stack([np.interp(edges_down, rows, column) for column in integral.T], axis=1)
    at_both = np.stack([np.interp(edges_across, columns, row) for row in at_rows])
    areas = np.outer(np.diff(edges_down), np.diff(edges_across))
    return np.diff(np.diff(at_both, axis=0), axis=1) / areas


sides = st.integers(3, 40)


@settings(deadline=None)
@given(
    sides, sides, st.integers(1, 12), st.integers(1, 12), st.floats(0, 0.999),
    st.floats(0, 0.999), st.sampled_from([1, 2, 3]), st.booleans(),
)  # fmt: skip
def test_shares_are_the_means_over_exact_areas(w, h, across, down, x, y, factor, mirrored):
    """Of masks of the photo's size, and of smaller and larger ones."""
    assume(max(across, down) <= 8 * min(across, down))
    levels = np.random.default_rng(w * h).integers(0, 256, (h, w), np.uint8)
    size = (8 * across, 8 * down)
    placement = place((w * factor, h * factor), size, (x, y), is_mirrored=mirrored)
    found = shares(Image.fromarray(levels), placement, (across, down))
    left, top, right, bottom = (edge / factor for edge in placement.box)
    expected = averages(
        levels / 255, np.linspace(top, bottom, down + 1), np.linspace(left, right, across + 1)
    )
    np.testing.assert_allclose(found, expected[:, ::-1] if mirrored else expected, atol=1e-5)


def test_weights_are_the_mask_and_a_share_of_the_rest():
    found = np.array([[1, 0.5], [0, 0]])
    np.testing.assert_allclose(loss_weights(found, 0), found / 1.5 * 4)
    np.testing.assert_allclose(loss_weights(found, 1), np.ones((2, 2)))
    rest = np.array([[1, 0.55], [0.1, 0.1]])
    np.testing.assert_allclose(loss_weights(found, 0.1), rest / 1.75 * 4, rtol=1e-6)


def test_a_white_mask_changes_nothing():
    mask = Image.new("L", (33, 21), 255)
    found = shares(mask, place((33, 21), (16, 16)), (8, 8))
    np.testing.assert_allclose(loss_weights(found, 0), np.ones((8, 8)), rtol=1e-6)


def test_a_black_mask_is_refused():
    with pytest.raises(ValueError, match="black") as error:
        require_subject(np.full((8, 8), 0.01), PHOTO, Path("dog-mask.png"))
    assert str(error.value) == (
        "The mask 'dog-mask.png' is black in the part of 'dog.jpg' that is trained, so nothing of "
        "the photo would be learned. White is learned: invert the mask, or remove it."
    )
    with pytest.raises(ValueError, match="transparent") as error:
        require_subject(np.zeros((8, 8)), PHOTO, None)
    assert str(error.value) == (
        "'dog.jpg' is transparent in all of the part that is trained, so nothing of it would be "
        "learned. Remove the photo, or set dataset.masks to auto."
    )
    require_subject(np.full((8, 8), 0.02), PHOTO, None)
