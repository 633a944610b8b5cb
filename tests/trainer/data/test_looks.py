"""What advice says of photos that are good, and of those that are not."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from scipy import ndimage

from trainer.data.cropping import place
from trainer.data.examples import find_examples
from trainer.data.images import read_image
from trainer.data.looks import advice, is_cut, is_inverted, look_at, mask_advice

PHOTOS = Path(__file__).parents[4] / "shared" / "photos"
"""Photos of DreamBooth's data set, where they are at hand."""


def photo(seed: int, *, size: tuple[int, int] = (640, 480), background: int | None = None):
    """A sharp picture of random shapes; its border is that of another seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (8, 10, 3), np.uint8)
    if background is not None:
        around = np.random.default_rng(background).integers(0, 256, (8, 10, 3), np.uint8)
        around[2:-2, 2:-2] = coarse[2:-2, 2:-2]
        coarse = around
    image = Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST)
    fine = rng.normal(0, 12, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(image) + fine).clip(0, 255).astype(np.uint8))


def advise(images: dict[str, Image.Image], resolution: int | None = None, **options) -> list[str]:
    return advice({name: look_at(images[name], **options) for name in images}, resolution)


GOOD = {f"{seed}.jpg": photo(seed) for seed in range(4)}


def compressed(image: Image.Image) -> Image.Image:
    content = BytesIO()
    image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(content, "JPEG", quality=50)
    return Image.open(content).convert("RGB")


def test_the_sharpness_is_the_variance_of_the_laplacian():
    image = photo(1, size=(300, 200))
    grey = np.asarray(image.convert("L"), float)
    expected = ndimage.laplace(grey)[1:-1, 1:-1].var()
    assert look_at(image).sharpness == pytest.approx(expected, rel=1e-4)


def test_good_photos_get_no_advice():
    assert advise(GOOD, 480) == []
    assert advise({}, 512) == []
    assert advise({"a.jpg": photo(0)}) == []


def test_each_advice_is_given_for_what_it_is_about():
    blurred = GOOD["1.jpg"].filter(ImageFilter.GaussianBlur(4))
    assert advise({**GOOD, "1.jpg": blurred}) == [
        "Blurred, compared with the other photos (1): 1.jpg. The model learns to draw softly from "
        "them. Leave them out, or use sharper ones."
    ]
    assert advise({**GOOD, "small.jpg": photo(7, size=(300, 600))}, 480) == [
        "Smaller than the resolution 480 (1): small.jpg. They would have to be enlarged, which "
        "softens them. Use larger ones, or lower the resolution."
    ]
    again = compressed(GOOD["2.jpg"])
    assert advise({**GOOD, "copy.jpg": again}) == [
        "Nearly the same photo (2): 2.jpg, copy.jpg. It counts several times, with its "
        "surroundings. Keep one of them."
    ]
    same = {f"{seed}.jpg": photo(seed, background=9) for seed in range(4)}
    assert advise(same) == [
        "4 of 4 photos have the same background, which is learned with the subject. Use photos in "
        "other places, or masks."
    ]


@pytest.mark.parametrize("change", ["mirrored", "darker", "cropped"])
def test_the_same_photo_is_recognised(change):
    image = GOOD["3.jpg"]
    other = {
        "mirrored": ImageOps.mirror(image),
        "darker": ImageEnhance.Brightness(image).enhance(0.7),
        "cropped": image.crop((6, 5, 634, 475)),
    }[change]
    assert "Nearly the same photo (2): 3.jpg, other.jpg." in advise({**GOOD, "other.jpg": other})[0]


def test_three_photos_in_a_row_are_one_advice():
    found = advise({"a": photo(1), "b": compressed(photo(1)), "c": photo(1), "d": photo(2)})
    assert [line.split(". ")[0] for line in found] == ["Nearly the same photo (3): a, b, c"]


def test_backgrounds_count_from_three_photos_and_three_quarters_on():
    def lines(alike: int, others: int, **options) -> list[str]:
        images = {f"{seed}": photo(seed, background=9) for seed in range(alike)}
        images |= {f"{seed}": photo(seed) for seed in range(20, 20 + others)}
        return advise(images, **options)

    assert lines(2, 0) == []
    assert lines(3, 1)[0].startswith("3 of 4 photos have the same background")
    assert lines(2, 2) == []
    assert lines(4, 0, has_mask=True) == []


def test_two_photos_are_too_few_to_call_one_blurred():
    assert advise({"a": photo(1), "b": photo(2).filter(ImageFilter.GaussianBlur(4))}) == []


def test_tiny_and_plain_photos_are_no_error():
    plain = {f"{n}": Image.new("RGB", (n, n), (9 * n, 90, 200)) for n in (1, 2, 3, 20)}
    assert isinstance(advise(plain, 16), list)


# --- Masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "cut"), [(60, False), (0, True), (20, True), (48, False)])
def test_a_subject_outside_the_crop_is_noticed(left, cut):
    """The middle 100 columns of 200 are trained. At 48, 2 of 40 columns are outside."""
    mask = Image.new("L", (200, 100))
    mask.paste(255, (left, 20, left + 40, 80))
    placement = place((200, 100), (64, 64))
    assert is_cut(mask, placement) is cut
    assert is_cut(mask.resize((100, 50)), placement) is cut


def test_inverted_masks_are_noticed():
    mask = Image.new("L", (100, 100))
    mask.paste(255, (25, 25, 75, 75))
    assert not is_inverted(mask)
    assert is_inverted(ImageOps.invert(mask))
    assert not is_inverted(Image.new("L", (100, 100), 255))


def test_advice_about_masks_names_photos_and_masks():
    assert list(mask_advice(["a.jpg"], ["b-mask.png"])) == [
        "The crop cuts off a part of the subject (1): a.jpg. Switch on dataset.buckets, or crop "
        "these photos yourself.",
        "Masks that seem to be inverted (1): b-mask.png. They are white at the border and black "
        "in the middle, but the subject must be white.",
    ]
    assert list(mask_advice([], [])) == []


# --- Real photos --------------------------------------------------------------------------------


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the photos are not here")
def test_real_photos_get_only_the_advice_that_is_right():
    """Four of the five photos of the dog are on orange paper."""
    found = {}
    for folder in sorted(path for path in PHOTOS.iterdir() if path.is_dir()):
        examples = find_examples([folder], "a thing")
        images = {each.path.name: read_image(each.path, (255, 255, 255)) for each in examples}
        found[folder.name] = advise(images, 512)
    assert [line for lines in found.values() for line in lines] == found["dog6"]
    (line,) = found["dog6"]
    assert line.startswith("4 of 5 photos have the same background")
