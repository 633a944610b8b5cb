from __future__ import annotations

import io
import logging
import os
import re
import struct
import subprocess
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from tests.trainer.data.test_conversions import GREY, WIDE_GAMUT
from tests.trainer.data.test_formats import heif
from trainer.data.images import parse_color, read_image

WHITE, TEAL = (255, 255, 255), (0, 128, 128)


def colours(height: int, width: int) -> np.ndarray:
    """[H, W, 3] uint8, every pixel different."""
    values = np.arange(height * width * 3) * 7 % 251
    return values.reshape(height, width, 3).astype(np.uint8)


def read(path: Path, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    image = read_image(path, background)
    assert image.mode == "RGB"
    return np.array(image)


def tiff(path: Path, levels: list[int], *, bits: int, photometric: int = 1) -> None:
    """Write an uncompressed grey TIFF of one row. 12-bit values are packed, two in three bytes."""
    if bits == 16:
        data = struct.pack(f"<{len(levels)}H", *levels)
    else:
        packed = "".join(f"{level:012b}" for level in levels)
        data = int(packed, 2).to_bytes(len(packed) // 8, "big")
    tags = {256: len(levels), 257: 1, 258: bits, 259: 1, 262: photometric}
    tags |= {273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of chunks with these names and contents."""
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def png_header(width: int, height: int) -> tuple[bytes, bytes]:
    """The header chunk of an RGB PNG."""
    return b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_keep_their_exact_pixels(tmp_path: Path, ending: str) -> None:
    pixels, path = colours(5, 7), tmp_path / f"a.{ending}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if ending == "webp" else {}))

    np.testing.assert_array_equal(read(path), pixels)


def test_a_jpeg_keeps_its_pixels_nearly(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8), (200, 100, 50)).save(tmp_path / "a.jpg", quality=95)

    assert np.abs(read(tmp_path / "a.jpg").astype(int) - (200, 100, 50)).max() <= 2


def test_the_content_decides_the_format_not_the_ending(tmp_path: Path) -> None:
    Image.fromarray(colours(4, 4)).save(tmp_path / "a.jpg", format="PNG")

    np.testing.assert_array_equal(read(tmp_path / "a.jpg"), colours(4, 4))


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tif"])
def test_an_animation_gives_its_first_frame_and_a_warning(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    red, blue, green = (Image.new("RGB", (8, 8), color) for color in ("red", "blue", "green"))
    path = tmp_path / f"a.{ending}"
    red.save(path, save_all=True, append_images=[blue, green])

    assert (np.abs(read(path).astype(int) - (255, 0, 0)) <= 2).all()
    assert caplog.messages == [
        f"'a.{ending}' has several frames. Only the first is used. Save the others as separate "
        "files to train on them too."
    ]


def test_extra_images_in_a_phones_photo_are_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    red, depth = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "grey")
    red.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[depth])

    assert (np.abs(read(tmp_path / "a.jpg").astype(int) - (255, 0, 0)) <= 2).all()
    assert caplog.messages == []


def test_transparent_parts_of_a_gif_show_the_background(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [1, 0]], dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.save(tmp_path / "a.gif", transparency=1)

    red = [255, 0, 0]
    assert read(tmp_path / "a.gif", TEAL).tolist() == [[red, list(TEAL)], [list(TEAL), red]]


def test_an_avif_photo_is_read_whatever_its_name(tmp_path: Path) -> None:
    if not features.check_module("avif"):
        pytest.skip("this Pillow was built without AVIF")
    for name in ("a.avif", "b.jpg"):
        image = Image.new("RGBA", (16, 8), (200, 100, 50, 255))
        image.putpixel((0, 0), (0, 0, 0, 0))
        image.save(tmp_path / name, format="AVIF", quality=100)

        pixels = read(tmp_path / name, TEAL).astype(int)
        assert np.abs(pixels[4:, 8:] - (200, 100, 50)).max() <= 2
        assert np.abs(pixels[0, 0] - TEAL).max() <= 4


def test_a_heic_photo_under_another_name_is_refused_by_its_format(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it was not installed
    (tmp_path / "a.jpg").write_bytes(heif(b"heic", b"mif1"))

    with pytest.raises(ValueError, match="HEIC") as error:
        read_image(tmp_path / "a.jpg", WHITE)

    assert str(error.value) == (
        "'a.jpg' is an image in the format HEIC, which cannot be read. To read such photos, run "
        f"'\"{sys.executable}\" -m pip install pillow-heif', or convert them to JPEG."
    )
    Image.new("RGB", (9, 5)).save(tmp_path / "a.jpg")
    assert read_image(tmp_path / "a.jpg", WHITE).size == (9, 5)


# -------------------------------------------------------------------- modes


def test_black_and_white_and_grey(tmp_path: Path) -> None:
    bits = np.array([[True, False, True]])
    Image.fromarray(bits).save(tmp_path / "1.png")
    Image.fromarray(np.array([[0, 77, 255]], dtype=np.uint8)).save(tmp_path / "L.png")

    assert read(tmp_path / "1.png")[0].tolist() == [[255] * 3, [0] * 3, [255] * 3]
    assert read(tmp_path / "L.png")[0].tolist() == [[0] * 3, [77] * 3, [255] * 3]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, ending: str) -> None:
    levels = np.array([[0, 257, 100 * 257, 128 * 257 + 128, 128 * 257 + 129, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{ending}")

    assert read(tmp_path / f"a.{ending}")[0, :, 1].tolist() == [0, 1, 100, 128, 129, 255]


def test_12_bit_and_negative_tiffs_range_from_black_to_white(tmp_path: Path) -> None:
    tiff(tmp_path / "12.tif", [0, 2048, 4095, 1024], bits=12)
    tiff(tmp_path / "negative.tif", [0, 65535, 257 * 55, 257], bits=16, photometric=0)

    assert read(tmp_path / "12.tif")[0, :, 0].tolist() == [0, 128, 255, 64]
    assert read(tmp_path / "negative.tif")[0, :, 0].tolist() == [255, 0, 200, 254]


GREY_AND_ALPHA, RED_GREEN_BLUE, WITH_ALPHA = 4, 2, 6
"""The colour types of PNG."""


@pytest.mark.parametrize(
    ("color_type", "levels", "expected"),
    [
        (
            RED_GREEN_BLUE,
            [100 * 257, 0, 65535, 32768, 1000, 200 * 257],
            [[100, 0, 255], [128, 3, 200]],
        ),
        (
            WITH_ALPHA,
            [100 * 257, 0, 65535, 65535, 32768, 1000, 200 * 257, 0],
            [[100, 0, 255], list(TEAL)],
        ),
        (GREY_AND_ALPHA, [100 * 257, 65535, 50000, 0], [[100, 100, 100], list(TEAL)]),
    ],
    ids=["RGB", "RGBA", "LA"],
)
def test_16_bit_colour_keeps_its_colour(
    tmp_path: Path, color_type: int, levels: list[int], expected: list[list[int]]
) -> None:
    row = b"\0" + struct.pack(f">{len(levels)}H", *levels)
    header = struct.pack(">IIBBBBB", 2, 1, 16, color_type, 0, 0, 0)
    content = png_file((b"IHDR", header), (b"IDAT", zlib.compress(row)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(content)

    assert read(tmp_path / "a.png", TEAL).tolist() == [expected]


def test_a_grey_level_that_stands_for_transparency(tmp_path: Path) -> None:
    levels = np.array([[0, 30000, 65535]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "16.png", transparency=30000)
    Image.fromarray((levels // 257).astype(np.uint8)).save(tmp_path / "8.png", transparency=116)

    for name in ("16.png", "8.png"):
        assert read(tmp_path / name, TEAL)[0].tolist() == [[0] * 3, list(TEAL), [255] * 3]


def test_a_palette_with_one_or_graded_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "one.png", transparency=1)
    image.save(tmp_path / "graded.png", transparency=bytes([255, 0, 51]))

    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    assert read(tmp_path / "plain.png", TEAL).tolist() == [[red, green, blue]]
    assert read(tmp_path / "one.png", TEAL).tolist() == [[red, list(TEAL), blue]]
    # 51 of 255 is a fifth of blue on four fifths of teal
    expected = [red, list(TEAL), [0, 102, 153]]
    assert np.abs(read(tmp_path / "graded.png", TEAL)[0].astype(int) - expected).max() <= 1


@pytest.mark.parametrize(("mode", "ending"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif")])
def test_alpha_is_composited_on_the_background(tmp_path: Path, mode: str, ending: str) -> None:
    colour = (200, 200, 200) if mode == "LA" else (200, 100, 50)
    alphas, path = (0, 64, 128, 255), tmp_path / f"a.{ending}"
    image = Image.new(mode, (4, 1))
    for x, alpha in enumerate(alphas):
        image.putpixel((x, 0), (*colour[: len(mode) - 1], alpha))
    image.save(path)

    expected = [
        [(c * alpha + b * (255 - alpha)) / 255 for c, b in zip(colour, TEAL, strict=True)]
        for alpha in alphas
    ]
    np.testing.assert_allclose(read(path, TEAL)[0], expected, atol=1)
    assert read(path, TEAL)[0, 0].tolist() == list(TEAL)


@pytest.mark.parametrize("ending", ["jpg", "tif"])
def test_cmyk_inks_become_rgb_colours(tmp_path: Path, ending: str) -> None:
    inks = {(255, 0, 0, 0): (0, 255, 255), (0, 0, 255, 0): (255, 255, 0), (0, 0, 0, 255): (0, 0, 0)}
    for ink, colour in inks.items():
        Image.new("CMYK", (16, 16), ink).save(tmp_path / f"a.{ending}")

        assert (np.abs(read(tmp_path / f"a.{ending}").astype(int) - colour) <= 2).all()


# ----------------------------------------------- orientation, colour profile


def stored(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The image as a camera stores it. The EXIF standard defines each number by which sides of the
    upright image are the first row and the first column."""
    turned = upright.swapaxes(0, 1)
    return {
        1: upright,  # row 0 is the top, column 0 the left
        2: upright[:, ::-1],  # top, right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


@pytest.mark.parametrize("ending", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_is_turned_upright(
    tmp_path: Path, orientation: int, ending: str
) -> None:
    upright, path = colours(2, 3), tmp_path / f"a.{ending}"
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image = Image.fromarray(np.ascontiguousarray(stored(upright, orientation)))
    image.save(path, exif=exif, **({"lossless": True} if ending == "webp" else {}))

    np.testing.assert_array_equal(read(path), upright)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_deflate", "packbits"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_a_tiff_of_any_mode_and_compression_is_turned_upright(
    tmp_path: Path, mode: str, compression: str
) -> None:
    """Pillow maps some uncompressed files into memory, with the wrong width and height."""
    image = Image.fromarray(colours(7, 11))
    if mode == "I;16":
        image = Image.fromarray(colours(7, 11)[..., 0].astype(np.uint16) * 257)
    image = image.convert(mode)
    image.save(tmp_path / "upright.tif")
    expected = read(tmp_path / "upright.tif")
    assert len(np.unique(expected)) > 1
    for orientation in range(1, 9):
        save_stored(image, tmp_path / "a.tif", orientation, compression=compression)

        np.testing.assert_array_equal(read(tmp_path / "a.tif"), expected)


def save_stored(upright: Image.Image, path: Path, orientation: int, **options: Any) -> None:
    """Save an image as a camera stores it that was held so."""
    pixels = np.ascontiguousarray(stored(np.array(upright), orientation))
    image = Image.fromarray(pixels, mode="CMYK" if upright.mode == "CMYK" else None)
    if upright.mode == "P":
        image.putpalette(upright.getpalette())
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_each_exif_orientation_of_a_jpeg_is_turned_upright(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    quarters = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]
    upright = np.array(quarters, np.uint8).repeat(16, axis=0).repeat(32, axis=1)
    image = Image.fromarray(np.ascontiguousarray(stored(upright, orientation)))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)

    difference = np.abs(read(tmp_path / "a.jpg").astype(int) - upright)

    assert difference.max() <= 3


def test_damaged_exif_data_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.webp", exif=b"Exif\0\0nonsense", quality=100)

    assert read(tmp_path / "a.webp").shape == (8, 8, 3)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("The EXIF data of 'a.webp' is damaged (")
    assert caplog.messages[0].endswith(
        "). If the photo is not upright, rotate it and save it again."
    )


def orientation_as(kind: int, value: bytes, count: int = 1) -> bytes:
    """EXIF data with an orientation of this TIFF type. A longer value stands behind the entries."""
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    entry = struct.pack("<HHI", ExifTags.Base.Orientation, kind, count) + place
    behind = value if len(value) > 4 else b""
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + behind


BYTE, TEXT, SHORT, LONG, RATIONAL, UNDEFINED, FLOAT = 1, 2, 3, 4, 5, 7, 11
"""Numbers of TIFF's types."""


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    "exif",
    [
        orientation_as(LONG, struct.pack("<I", 6)),
        orientation_as(RATIONAL, struct.pack("<II", 6, 1)),
        orientation_as(FLOAT, struct.pack("<f", 6)),
    ],
    ids=["long", "rational", "float"],
)
def test_an_orientation_in_another_type_of_number_is_applied(
    tmp_path: Path, exif: bytes, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (24, 16)).save(tmp_path / f"a.{ending}", exif=exif)

    assert read(tmp_path / f"a.{ending}").shape == (24, 16, 3)
    assert caplog.messages == []


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize(
    ("exif", "shown"),
    [
        (orientation_as(BYTE, b"\6"), r"b'\x06'"),
        (orientation_as(UNDEFINED, bytes(300), count=300), r"b'\x00\x00\x0...0\x00\x00\x00'"),
        (orientation_as(TEXT, b"Rotate 90 CW\0", count=13), "'Rotate 90 CW'"),
        (orientation_as(RATIONAL, struct.pack("<II", 6, 0)), "nan"),
        (orientation_as(SHORT, struct.pack(">H", 6)), "1536"),
        (orientation_as(SHORT, struct.pack("<H", 9)), "9"),
    ],
    ids=["byte", "bytes", "text", "nan", "other byte order", "9"],
)
def test_an_invalid_orientation_gives_a_warning(
    tmp_path: Path, exif: bytes, shown: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (24, 16)).save(tmp_path / f"a.{ending}", exif=exif)

    assert read(tmp_path / f"a.{ending}").shape == (16, 24, 3)
    assert caplog.messages == [
        f"The EXIF data of 'a.{ending}' is damaged (its orientation is {shown}). If the photo is "
        "not upright, rotate it and save it again."
    ]


def test_an_unknown_orientation_is_no_damage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = orientation_as(SHORT, struct.pack("<H", 0))
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg", exif=exif)

    assert read(tmp_path / "a.jpg").shape == (16, 24, 3)
    assert caplog.messages == []


def test_an_image_is_turned_even_if_pillow_cannot_rewrite_its_exif_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    orientation = struct.pack("<HHII", ExifTags.Base.Orientation, 3, 1, 6)
    width_as_text = struct.pack("<HHI4s", ExifTags.Base.ImageWidth, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + width_as_text + orientation + bytes(4)
    image = Image.fromarray(np.ascontiguousarray(stored(colours(2, 3), 6)))
    image.save(tmp_path / "a.png", exif=exif)

    np.testing.assert_array_equal(read(tmp_path / "a.png"), colours(2, 3))
    assert [message[:32] for message in caplog.messages] == ["The EXIF data of 'a.png' is dama"]


def profile(*, swapped: bool) -> bytes:
    """The sRGB profile; or one with another name that swaps red and blue."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    if swapped:
        data = data.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
        data = data.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    return data


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_colour_profile_is_applied(tmp_path: Path, mode: str) -> None:
    color = (255, 0, 0, 128)[: len(mode)]
    Image.new(mode, (2, 2), color).save(tmp_path / "a.png", icc_profile=profile(swapped=True))

    expected = (0, 0, 255) if mode == "RGB" else (127, 127, 255)
    assert np.abs(read(tmp_path / "a.png").astype(int) - expected).max() <= 1


def test_srgb_images_keep_their_exact_pixels(tmp_path: Path) -> None:
    Image.fromarray(colours(9, 9)).save(tmp_path / "a.png", icc_profile=profile(swapped=False))

    np.testing.assert_array_equal(read(tmp_path / "a.png"), colours(9, 9))


def test_a_linear_profile_is_applied_whatever_its_name(tmp_path: Path) -> None:
    """Half the light of white is level 188 by the sRGB formula."""
    linear = profile(swapped=False).replace("sRGB".encode("utf-16-be"), "RGB ".encode("utf-16-be"))
    start = linear.index(b"para", 300)  # the curve itself, behind the table of contents
    linear = linear[:start] + b"para" + bytes(8) + struct.pack(">I", 1 << 16) + linear[start + 16 :]
    name = "built-in".encode("utf-16-be")
    assert name in linear
    linear = linear.replace("RGB ".encode("utf-16-be") + name, "sRGB linear ".encode("utf-16-be"))
    Image.new("RGB", (2, 2), (128, 128, 128)).save(tmp_path / "a.png", icc_profile=linear)

    expected = 255 * (1.055 * (128 / 255) ** (1 / 2.4) - 0.055)
    assert np.abs(read(tmp_path / "a.png").astype(int) - round(expected)).max() <= 1


def test_a_colour_profile_on_a_grey_image_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("L", (2, 2), 77).save(tmp_path / "a.png", icc_profile=profile(swapped=True))

    assert (read(tmp_path / "a.png") == 77).all()
    assert caplog.messages == [
        "The colour profile of 'a.png' cannot be used (cannot build transform). Its colours are "
        "treated as sRGB."
    ]


def test_a_damaged_colour_profile_gives_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(colours(9, 9)).save(tmp_path / "a.png", icc_profile=b"nonsense")

    np.testing.assert_array_equal(read(tmp_path / "a.png"), colours(9, 9))
    assert caplog.messages == [
        "The colour profile of 'a.png' cannot be used (cannot open profile from string). Its "
        "colours are treated as sRGB."
    ]


# ----------------------------------------------------------------- refusals


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()

    with pytest.raises(ValueError, match="empty") as error:
        read_image(tmp_path / "a.jpg", WHITE)

    assert str(error.value) == (
        "'a.jpg' cannot be read as an image: the file is empty. Replace it, or remove it."
    )


@pytest.mark.parametrize("content", [b"<!DOCTYPE html><html>", b"%!PS-Adobe-3.0 EPSF-3.0\n" * 9])
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)

    with pytest.raises(ValueError, match="content") as error:
        read_image(tmp_path / "a.jpg", WHITE)

    assert str(error.value) == (
        "'a.jpg' cannot be read as an image: its content is none of BMP, GIF, JPEG, PNG, TIFF, "
        "WEBP. Replace it, or remove it."
    )


@pytest.mark.parametrize(
    ("ending", "size", "reason"),
    [
        ("png", 2000, "image file is truncated"),
        ("jpg", 2000, r"image file is truncated \(\d+ bytes not processed\)"),
        ("jpg", 100, "Truncated File Read"),
    ],
)
def test_a_truncated_file_is_refused(tmp_path: Path, ending: str, size: int, reason: str) -> None:
    path, rng = tmp_path / f"a.{ending}", np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:size])

    with pytest.raises(ValueError, match=f"'a.{ending}'") as error:
        read_image(path, WHITE)

    assert re.fullmatch(
        f"'a.{ending}' cannot be read as an image: {reason}\\. Replace it, or remove it\\.",
        str(error.value),
    )


@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_all_damage_raises_value_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    Image.fromarray(colours(40, 40)).save(path)
    whole = path.read_bytes()
    rng, refusals = np.random.default_rng(0), []
    for _ in range(60):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(damaged), 12)] = rng.integers(0, 256, 12)
        path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)].tobytes())
        try:
            read_image(path, WHITE)
        except ValueError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert all(refusal.startswith(f"'a.{ending}' ") for refusal in refusals)


def test_an_image_that_is_too_large_is_read_once_it_is_smaller(tmp_path: Path) -> None:
    large = Image.new("1", (9_500, 9_500))
    large.save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"is too large\. .* Make it smaller\."):
        read_image(tmp_path / "a.png", WHITE)
    large.resize((95, 95)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", WHITE).size == (95, 95)


@pytest.mark.parametrize(("side", "limit"), [(10_000, 89_478_485), (20_000, 178_956_970)])
def test_a_decompression_bomb_is_refused(tmp_path: Path, side: int, limit: int) -> None:
    (tmp_path / "a.png").write_bytes(png_file(png_header(side, side), (b"IDAT", b"")))
    before = Image.MAX_IMAGE_PIXELS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow only warns about images up to twice its limit
        with pytest.raises(ValueError, match="too large") as error:
            read_image(tmp_path / "a.png", WHITE)

    assert str(error.value) == (
        f"'a.png' is too large. Image size ({side**2} pixels) exceeds limit of {limit} pixels, "
        "could be decompression bomb DOS attack. Make it smaller."
    )
    assert before == Image.MAX_IMAGE_PIXELS == 89_478_485


def claiming(ending: str, side: int) -> bytes:
    """A small file whose header claims this many pixels on each side."""
    if ending == "png":
        return png_file(png_header(side, side), (b"IDAT", zlib.compress(bytes(200))))
    file = io.BytesIO()
    kind = {"jpg": "JPEG", "tif": "TIFF"}.get(ending, ending.upper())
    Image.new("RGB", (8, 8)).save(file, format=kind, lossless=True)
    content = bytearray(file.getvalue())
    sides = struct.pack("<HH", side, side)
    places = {
        "gif": [(6, sides), (content.find(b",") + 5, sides)],
        "bmp": [(18, struct.pack("<ii", side, side))],
        "jpg": [(content.find(b"\xff\xc0") + 5, struct.pack(">HH", side, side))],
        "webp": [(content.find(b"VP8L") + 9, struct.pack("<I", side - 1 | side - 1 << 14))],
        "tif": [
            (content.find(struct.pack("<HH", tag, 4)) + 8, struct.pack("<I", side))
            for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength)
        ],
    }
    for place, new in places[ending]:
        content[place : place + len(new)] = new
    return bytes(content)


READ_A_LARGE_PHOTO = """
import re, sys
from pathlib import Path
from trainer.data.images import read_image
def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
image = read_image(Path(sys.argv[1]), (0, 0, 0))
sys.stdout.write(f"{image.width} {image.height} {peak() - before}")
"""
"""Its size, and the MiB that reading it took at most."""


def read_alone(path: Path) -> tuple[tuple[int, int], int]:
    """The size of a photo that a process of its own reads, and the MiB that this took at most."""
    width, height, used = map(int, run_alone(READ_A_LARGE_PHOTO, path).split())
    return (width, height), used


@pytest.mark.posix
@pytest.mark.parametrize(
    ("width", "height", "megabytes"), [(12000, 9000, 150), (16384, 12288, 250)]
)
def test_a_photo_of_a_phone_with_108_or_200_megapixels_is_read_at_half_its_size(
    tmp_path: Path, width: int, height: int, megabytes: int
) -> None:
    """Pillow stores a pixel in 4 bytes: 103 and 192 MiB for the halved photo alone."""
    Image.new("RGB", (width, height), (200, 100, 50)).save(tmp_path / "a.jpg")

    size, used = read_alone(tmp_path / "a.jpg")

    assert size == (width // 2, height // 2)
    assert used < megabytes


@pytest.mark.posix
@pytest.mark.parametrize(
    ("mode", "has_profile", "is_turned", "megabytes"),
    [
        ("RGB", True, False, 150),
        ("RGB", True, True, 250),  # turning needs a second copy
        ("L", True, False, 180),
        ("CMYK", False, False, 250),
    ],
    ids=["profile", "turned", "grey", "CMYK"],
)
def test_a_large_photo_is_never_kept_at_several_stages(
    tmp_path: Path, mode: str, has_profile: bool, is_turned: bool, megabytes: int
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6 if is_turned else 1
    icc = {"L": GREY, "RGB": WIDE_GAMUT, "CMYK": b""}[mode] if has_profile else b""
    Image.new(mode, (12_000, 9_000)).save(tmp_path / "a.jpg", exif=exif, icc_profile=icc)

    size, used = read_alone(tmp_path / "a.jpg")

    assert size == ((4_500, 6_000) if is_turned else (6_000, 4_500))
    assert used < megabytes


@pytest.mark.posix
@pytest.mark.parametrize(("subsampling", "megabytes"), [("4:2:0", 450), ("4:4:4", 760)])
def test_a_large_progressive_photo_takes_the_memory_of_its_decoder(
    tmp_path: Path, subsampling: str, megabytes: int
) -> None:
    """libjpeg keeps 2 bytes per pixel and channel until the last scan: 309 and 618 MiB."""
    image = Image.new("RGB", (12_000, 9_000), (200, 100, 50))
    image.save(tmp_path / "a.jpg", progressive=True, subsampling=subsampling)

    size, used = read_alone(tmp_path / "a.jpg")

    assert size == (6_000, 4_500)
    assert used < megabytes


def test_a_large_photo_is_turned_and_keeps_its_profile_and_colours(tmp_path: Path) -> None:
    """Red is on the left of the stored image, so on the top of the upright one."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = Image.new("RGB", (10_001, 9_000), "green")
    image.paste((255, 0, 0), (0, 0, 5_000, 9_000))
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=profile(swapped=True))

    pixels = read_image(tmp_path / "a.jpg", WHITE)

    assert pixels.size == (4_500, 5_001)
    assert np.abs(np.array(pixels.getpixel((2_000, 100))) - (0, 0, 255)).max() <= 3
    assert np.abs(np.array(pixels.getpixel((2_000, 4_900))) - (0, 128, 0)).max() <= 3


def test_photos_below_the_limit_keep_every_pixel(tmp_path: Path) -> None:
    Image.new("L", (9_000, 9_900), 77).save(tmp_path / "a.jpg")

    assert read_image(tmp_path / "a.jpg", WHITE).size == (9_000, 9_900)


def test_a_large_photo_that_is_truncated_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (10_000, 9_000)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])

    with pytest.raises(ValueError, match=r"^'a.jpg' cannot be read as an image: image file is tr"):
        read_image(tmp_path / "a.jpg", WHITE)


READ_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from trainer.data.images import read_image
*warm_up, = map(Path, sys.argv[2:])
read_image(Path(sys.argv[1]), (0, 0, 0))
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 32 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in warm_up:
    try:
        read_image(path, (0, 0, 0))
    except ValueError as error:
        sys.stdout.write(f"{error}\\n")
"""


def refusals_in_little_memory(folder: Path, files: dict[str, bytes]) -> list[str]:
    """The error message for each file, in a process that may use 32 MB more to read them."""
    Image.new("RGB", (8, 8)).save(folder / "warm up.png")
    for name, content in files.items():
        (folder / name).write_bytes(content)
    paths = [folder / "warm up.png", *(folder / name for name in files)]
    return run_alone(READ_IN_LITTLE_MEMORY, *paths).splitlines()


def run_alone(code: str, *paths: Path) -> str:
    """The output of code that a process of its own runs."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code, *map(str, paths)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.posix
def test_bombs_of_every_format_take_no_memory(tmp_path: Path) -> None:
    sides = {
        "png": 30_000,
        "gif": 60_000,
        "jpg": 60_000,
        "bmp": 30_000,
        "webp": 16_000,
        "tif": 30_000,
    }
    files = {f"a.{ending}": claiming(ending, side) for ending, side in sides.items()}
    assert all(len(content) < 1000 for content in files.values())

    refusals = refusals_in_little_memory(tmp_path, files)

    assert refusals == [
        f"'a.{ending}' is too large. Image size ({side**2} pixels) exceeds limit of 178956970 "
        "pixels, could be decompression bomb DOS attack. Make it smaller."
        for ending, side in sides.items()
    ]


@pytest.mark.posix
def test_a_jpeg_that_only_claims_to_be_a_large_photo_takes_no_memory(tmp_path: Path) -> None:
    refusals = refusals_in_little_memory(tmp_path, {"a.jpg": claiming("jpg", 14_000)})

    assert refusals == [
        "'a.jpg' is too large. Image size (196000000 pixels) exceeds limit of 178956970 pixels, "
        "could be decompression bomb DOS attack. Make it smaller."
    ]


@pytest.mark.posix
def test_a_profile_and_a_text_that_decompress_to_gigabytes_are_refused(tmp_path: Path) -> None:
    huge = zlib.compress(bytes(200_000_000))
    end = (b"IDAT", zlib.compress(bytes(4))), (b"IEND", b"")
    files = {
        "profile.png": png_file(png_header(1, 1), (b"iCCP", b"name\0\0" + huge), *end),
        "text.png": png_file(png_header(1, 1), (b"zTXt", b"name\0\0" + huge), *end),
    }

    refusals = refusals_in_little_memory(tmp_path, files)

    assert refusals == [
        f"'{name}' cannot be read as an image: Decompressed data too large for "
        "PngImagePlugin.MAX_TEXT_CHUNK. Replace it, or remove it."
        for name in files
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_numbers_without_a_fixed_white_are_refused(
    tmp_path: Path, dtype: type[np.float32 | np.int32]
) -> None:
    Image.fromarray(np.zeros((4, 4), dtype)).save(tmp_path / "a.tif")

    with pytest.raises(ValueError, match="no fixed black") as error:
        read_image(tmp_path / "a.tif", WHITE)

    assert str(error.value) == (
        "'a.tif' stores 32-bit, floating-point or signed values, which have no fixed black and "
        "white. Save it with 8 or 16 bits per channel."
    )


@pytest.mark.parametrize("text", ["whitish", "#12345", "#ffffff80", ""])
def test_an_unknown_background_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="background") as error:
        parse_color(text)

    assert str(error.value) == (
        f"dataset.background must be a colour name such as white, or #rrggbb, got '{text}'."
    )


def test_backgrounds_by_name_and_number() -> None:
    assert (parse_color("teal"), parse_color("#FF8000")) == ((0, 128, 128), (255, 128, 0))


def test_reading_a_good_image_logs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(colours(9, 9)).save(tmp_path / "a.png")

    with caplog.at_level(logging.INFO, "trainer"):
        read(tmp_path / "a.png")

    assert caplog.messages == []
