"""Where images are cropped, and that none is stretched."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.trainer.data.test_images import WHITE, colours
from trainer.data.cropping import draw_crop_position, fit, is_smaller, require_size
from trainer.data.images import read_image


def test_a_small_image_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller") as error:
        require_size(Path("photos/photo.jpg"), Image.new("RGB", (200, 180)), (512, 512))

    assert str(error.value) == (
        "'photo.jpg' is 200x180 pixels, smaller than the training resolution 512. Use larger "
        "images, lower dataset.resolution or switch on dataset.allow_upscaling."
    )


def test_an_image_that_covers_only_one_side_is_refused() -> None:
    with pytest.raises(ValueError, match="smaller") as error:
        require_size(Path("photo.jpg"), Image.new("RGB", (900, 447)), (576, 448))

    assert str(error.value) == (
        "'photo.jpg' is 900x447 pixels, smaller than the training size 576x448. Use larger images, "
        "lower dataset.resolution or switch on dataset.allow_upscaling."
    )
    assert not is_smaller(Image.new("RGB", (576, 448)), (576, 448))


def test_an_image_of_the_size_keeps_its_exact_pixels() -> None:
    pixels, framing = fit(Image.fromarray(colours(8, 16)), (16, 8))

    expected = torch.from_numpy(colours(8, 16)).permute(2, 0, 1).double() / 127.5 - 1
    torch.testing.assert_close(pixels.double(), expected, atol=1e-6, rtol=0)
    assert (framing.original_size, framing.crop, framing.size) == ((16, 8), (0, 0), (16, 8))


def test_black_is_minus_one_and_white_one() -> None:
    image = Image.new("RGB", (8, 8), (0, 255, 255))

    pixels, _ = fit(image, (8, 8))

    assert pixels[0].unique().tolist() == [-1]
    assert pixels[1:].unique().tolist() == [1]


@pytest.mark.parametrize(
    ("position", "left"), [((0.5, 0.5), 4), ((0.0, 0.9), 0), ((0.3, 0.0), 2), ((0.999, 0.5), 8)]
)
@pytest.mark.parametrize("mirrored", [False, True])
def test_the_crop_is_at_its_position_and_mirrored_afterwards(
    position: tuple[float, float], left: int, mirrored: bool
) -> None:
    image = colours(4, 12)

    pixels, framing = fit(Image.fromarray(image), (4, 4), position=position, mirrored=mirrored)

    kept = image[:, left : left + 4]
    expected = np.ascontiguousarray(kept[:, ::-1] if mirrored else kept)
    levels = ((pixels + 1) * 127.5).round().to(torch.uint8)
    np.testing.assert_array_equal(levels.permute(1, 2, 0).numpy(), expected)
    assert framing.crop == (8 - left if mirrored else left, 0)
    assert framing.original_size == (12, 4)


def test_a_mirrored_example_is_the_mirror_image_after_resizing() -> None:
    image = Image.fromarray(colours(60, 90)).resize((97, 61))

    plain, _ = fit(image, (32, 24), position=(0.2, 0.8))
    mirrored, _ = fit(image, (32, 24), position=(0.2, 0.8), mirrored=True)

    assert torch.equal(mirrored, torch.from_numpy(plain.numpy()[:, :, ::-1].copy()))


lengths = st.integers(20, 100)
targets = st.integers(2, 16).map(lambda units: 8 * units)


@settings(deadline=None)
@given(lengths, lengths, targets, targets, st.floats(0, 0.999), st.floats(0, 0.999))
def test_no_image_is_ever_stretched(
    width: int, height: int, across: int, down: int, x: float, y: float
) -> None:
    """Red rises from left to right and green from top to bottom, so the colour of an output pixel
    tells which position of the image it shows, to 1.6 levels (8-bit rounding, twice) or two thirds
    of a pixel. It must be the position that the framing gives with one scale for both directions.
    """
    assume(max(across / width, down / height) <= 4)
    ramp = np.zeros((height, width, 3))
    ramp[:, :, 0] = 255 * (np.arange(width) + 0.5) / width
    ramp[:, :, 1] = 255 * ((np.arange(height) + 0.5) / height)[:, None]

    pixels, framing = fit(
        Image.fromarray(np.rint(ramp).astype(np.uint8)), (across, down), position=(x, y)
    )

    levels = (pixels + 1) * 127.5
    scale = max(across / width, down / height)
    for channel, (side, length) in enumerate([(width, across), (height, down)]):
        profile = levels[channel].mean(dim=channel).numpy()
        shown = (framing.crop[channel] + np.arange(length) + 0.5) / scale
        margin = 4 * max(1, 1 / scale)  # beyond the image's edge the filter has no neighbours
        inside = (shown > margin) & (shown < side - margin)
        assert np.abs(profile - 255 * shown / side)[inside].max(initial=0) < 1.6
        assert framing.crop[channel] + length <= side * scale + 1e-6


def test_fine_detail_is_averaged_not_skipped() -> None:
    """Every second column is white. Averaging makes it grey; skipping columns would not."""
    image = np.zeros((64, 64, 3), np.uint8)
    image[:, ::2] = 255

    pixels, _ = fit(Image.fromarray(image), (16, 16))

    assert pixels[:, :, 2:-2].abs().max() < 0.05


def test_a_random_position_depends_only_on_seed_and_content(tmp_path: Path) -> None:
    contents = {"a/1.jpg": b"one", "b/1.jpg": b"two", "c/other.png": b"one"}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    one, two, copy = (tmp_path / name for name in contents)

    first = draw_crop_position(one, 3)
    assert first == draw_crop_position(copy, 3) == draw_crop_position(one, 3)
    assert len({first, draw_crop_position(two, 3), draw_crop_position(one, 4)}) == 3


def test_random_positions_fill_the_whole_range(tmp_path: Path) -> None:
    path, positions = tmp_path / "a.png", []
    for number in range(200):
        path.write_bytes(hashlib.sha256(bytes([number])).digest())
        positions.append(draw_crop_position(path, 0))
    across, down = np.array(positions).T

    for shares in (across, down):
        assert shares.min() < 0.05
        assert 0.95 < shares.max() < 1
        assert abs(shares.mean() - 0.5) < 0.07
    assert abs(np.corrcoef(across, down)[0, 1]) < 0.2


def test_a_small_image_is_enlarged_evenly() -> None:
    pixels, framing = fit(Image.new("RGB", (10, 20), "red"), (40, 40))

    assert pixels.shape == (3, 40, 40)
    assert framing.crop == (0, 20)


def test_a_single_pixel_fills_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (255, 0, 51)).save(tmp_path / "a.png")

    pixels, framing = fit(read_image(tmp_path / "a.png", WHITE), (24, 16))

    expected = torch.tensor([1.0, -1.0, 51 / 127.5 - 1])
    torch.testing.assert_close(pixels, expected[:, None, None].expand(3, 16, 24))
    assert framing.crop == (0, 4)


@pytest.mark.parametrize(("width", "height"), [(20_000, 1), (1, 20_000)])
def test_a_single_line_of_pixels_keeps_its_shape(tmp_path: Path, width: int, height: int) -> None:
    """Each pixel becomes a 64x64 square, and the centre crop shows half of two of them."""
    line = (np.arange(20_000) % 251).astype(np.uint8)
    Image.fromarray(line.reshape(height, width)).save(tmp_path / "a.png")

    pixels, framing = fit(read_image(tmp_path / "a.png", WHITE), (64, 64))

    assert max(framing.crop) == 9_999.5 * 64
    two = line[9_999:10_001].astype(float)
    levels = (pixels + 1) * 127.5
    assert two.min() - 1 <= levels.min() <= levels.max() <= two.max() + 1
