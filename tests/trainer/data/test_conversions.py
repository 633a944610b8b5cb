"""Random images in every mode and format that Pillow writes, against a conversion with ImageCms and
numpy that shares no code with the trainer's."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageCms, features

from trainer.data.formats import FORMATS
from trainer.data.images import read_image

CHANNELS = {"1": 1, "L": 1, "LA": 2, "P": 1, "RGB": 3, "RGBA": 4, "CMYK": 4, "I;16": 1}
LOSSLESS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "BMP": ("1", "L", "P", "RGB"),
    "GIF": ("1", "L", "P"),
    "WEBP": ("RGB", "RGBA"),
}
LOSSY = {"JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB",), "AVIF": ("RGB",)}
"""Compared with what an independent decoder call gives, as they change pixels."""
WITH_PROFILE = {"PNG", "TIFF", "WEBP", "JPEG", "AVIF"}
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
backgrounds = st.tuples(*[st.integers(0, 255)] * 3)
ALL = [(kind, mode) for kind, modes in LOSSLESS.items() for mode in modes]
LEVELS = 2
WHITE_POINT = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)


def wide_gamut() -> bytes:
    """A profile that swaps red and green and has a gamma of 1.8."""
    data = swapping()
    start = data.index(b"para", 300)  # the curve itself, behind the table of contents
    curve = b"para" + bytes(8) + struct.pack(">i", round(1.8 * 65536))
    return data[:start] + curve + data[start + len(curve) :]


def swapping() -> bytes:
    """sRGB with red and green swapped."""
    data = SRGB.tobytes().replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    for old, new in [(b"rXYZ", b"????"), (b"gXYZ", b"rXYZ"), (b"????", b"gXYZ")]:
        data = data.replace(old, new)
    return data


def grey_gamma(gamma: float) -> bytes:
    """A profile for grey images, of version 2."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": WHITE_POINT,
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)),
    }
    return icc_profile(b"mntrGRAYXYZ ", tags)


def icc_profile(kind: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    """`kind`: the device class, the colour space, and the space that it is converted to."""
    table, data = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    header = bytes(4) + struct.pack(">I", 0x02100000) + kind + bytes(12) + b"acsp"
    header = bytes(4) + header + bytes(28) + WHITE_POINT[8:] + bytes(48)
    return struct.pack(">I", len(header + table + data)) + (header + table + data)[4:]


def cmyk_profile() -> bytes:
    """A profile of version 2 for four inks, with a table of the colours (CIELAB) of full inks."""
    header = struct.pack(">4s4B3I", b"mft1", 0, 0, 0, 0, 0, 0, 0)[:8]
    header += struct.pack(">4B", 4, 3, 2, 0)
    matrix = struct.pack(">9i", *(65536 * (n % 4 == 0) for n in range(9)))
    identity = bytes(range(256))
    colours = np.random.default_rng(0).integers(60, 196, (16, 3), np.uint8)
    table = header + matrix + 4 * identity + colours.tobytes() + 3 * identity
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"inks\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": WHITE_POINT,
        b"A2B0": table,
    }
    return icc_profile(b"prtrCMYKLab ", tags)


WIDE_GAMUT = wide_gamut()
GREY = grey_gamma(1.4)
INKS = cmyk_profile()


def to_image(pixels: np.ndarray, mode: str, palette: np.ndarray) -> Image.Image:
    if mode == "1":
        return Image.fromarray(pixels[..., 0] > 127)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "P":
        image = Image.fromarray(pixels[..., 0] % 16)
        image.putpalette(palette.tobytes())
        return image
    array = pixels[..., 0] if CHANNELS[mode] == 1 else pixels
    return Image.fromarray(np.ascontiguousarray(array), mode=mode)


def expected_pixels(
    pixels: np.ndarray, mode: str, palette: np.ndarray, icc: bytes | None, background: Any
) -> np.ndarray:
    """[H, W, 3] float. The colour channels are converted by the profile, then put on the background
    in proportion to alpha."""
    alpha = pixels[..., -1:] / 255 if mode in ("LA", "RGBA") else np.ones((*pixels.shape[:2], 1))
    if mode in ("RGB", "RGBA"):
        colours = pixels[..., :3]
    elif mode == "P":
        colours = palette[pixels[..., 0] % 16]
    elif mode == "CMYK":
        inks = 255.0 - pixels
        colours = np.rint(inks[..., :3] * inks[..., 3:] / 255).astype(np.uint8)
    else:
        grey = np.where(pixels[..., :1] > 127, 255, 0) if mode == "1" else pixels[..., :1]
        colours = grey.repeat(3, axis=2).astype(np.uint8)
    return alpha * converted(colours, icc) + (1 - alpha) * np.array(background)


def converted(colours: np.ndarray, icc: bytes | None) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(colours))
    if icc:
        mode = "L" if icc == GREY else "RGB"
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(source, SRGB, mode, "RGB")
        image = ImageCms.applyTransform(image.getchannel(0) if icc == GREY else image, transform)
    return np.asarray(image).astype(float)


def profile_for(mode: str, icc: bytes | None) -> bytes | None:
    """Profiles for three channels do not belong to grey or CMYK images."""
    if mode in ("L", "LA", "1", "I;16"):
        return GREY if icc else None
    return None if mode == "CMYK" else icc


def check(path: Path, expected: np.ndarray, background: Any) -> None:
    shown = np.asarray(read_image(path, background)).astype(float)
    assert shown.shape == expected.shape
    assert np.abs(shown - expected).max() <= LEVELS


pictures = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda size: arrays(np.uint8, (*size, 4))
)
palettes = arrays(np.uint8, (16, 3))
profiles = st.sampled_from([None, WIDE_GAMUT, SRGB.tobytes()])
examples = settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize(("kind", "mode"), ALL)
@examples
@given(picture=pictures, palette=palettes, icc=profiles, background=backgrounds)
def test_lossless_formats_come_out_as_an_independent_conversion_gives_them(
    tmp_path, kind, mode, picture, palette, icc, background
):
    pixels = picture[..., : CHANNELS[mode]]
    icc = profile_for(mode, icc) if kind in WITH_PROFILE else None
    options = {"icc_profile": icc} if icc else {}
    if kind == "WEBP":
        options |= {"lossless": True, "exact": True}
    path = tmp_path / "photo"
    to_image(pixels, mode, palette).save(path, format=kind, **options)
    check(path, expected_pixels(pixels, mode, palette, icc, background), background)


@pytest.mark.parametrize(("kind", "mode"), [(k, m) for k, modes in LOSSY.items() for m in modes])
@examples
@given(picture=pictures, icc=profiles, background=backgrounds)
def test_lossy_formats_come_out_as_an_independent_conversion_gives_them(
    tmp_path, kind, mode, picture, icc, background
):
    if kind == "AVIF" and not features.check_module("avif"):
        pytest.skip("this Pillow was built without AVIF")
    path, icc = tmp_path / "photo", profile_for(mode, icc)
    to_image(picture[..., : CHANNELS[mode]], mode, np.zeros(0)).save(
        path, format=kind, **({"icc_profile": icc} if icc else {})
    )
    with Image.open(path) as image:
        stored = np.asarray(image)
    stored = stored.reshape(*stored.shape[:2], -1)
    check(path, expected_pixels(stored, mode, np.zeros(0), icc, background), background)


@examples
@given(grey=pictures, level=st.integers(0, 255), background=backgrounds, icc=profiles)
def test_a_transparent_level_or_colour_shows_the_background(tmp_path, grey, level, background, icc):
    path, levels = tmp_path / "photo", grey[..., 0]
    icc = profile_for("L", icc)
    options = {"icc_profile": icc} if icc else {}
    Image.fromarray(levels).save(path, format="PNG", transparency=level, **options)
    opaque = levels[..., None] != level
    colours = converted(levels[..., None].repeat(3, axis=2), icc)
    check(path, np.where(opaque, colours, np.array(background)), background)
    colours = np.stack([levels, 255 - levels, levels // 2], axis=2)
    transparent = (level, 255 - level, level // 2)
    Image.fromarray(colours).save(path, format="PNG", transparency=transparent)
    check(path, np.where(opaque, colours, np.array(background)), background)


@examples
@given(picture=pictures, palette=palettes, alphas=st.binary(min_size=16, max_size=16),
       icc=profiles, background=backgrounds)  # fmt: skip
def test_a_palette_with_alphas_is_put_on_the_background(
    tmp_path, picture, palette, alphas, icc, background
):
    path, indices = tmp_path / "photo", picture[..., 0] % 16
    options = {"icc_profile": icc} if icc else {}
    to_image(picture[..., :1], "P", palette).save(
        path, format="PNG", transparency=alphas, **options
    )
    alpha = np.frombuffer(alphas, np.uint8)[indices]
    rgba = np.concatenate([palette[indices], alpha[..., None]], axis=2)
    check(path, expected_pixels(rgba, "RGBA", palette, icc, background), background)


# ------------------------------------------------- every mode that a format can be saved from

EXCLUDED = {("TIFF", "I"), ("TIFF", "F"), ("MPO", "CMYK")}
"""Numbers without a fixed white are refused, as `test_images.py` tests. Pillow calls its own MPO
files with CMYK malformed, and reads them as JPEG."""
PROFILES = {
    **dict.fromkeys(("1", "L", "LA", "I", "I;16", "I;16B"), GREY),
    "CMYK": INKS,
    "YCbCr": swapping(),  # its colours may differ by a level, which the curve would enlarge
}
"""By the mode of a file's pixels. Others have WIDE_GAMUT."""
MODES = (*Image.MODES, "I;16L", "I;16B", "I;16N")


def saved(path: Path, kind: str, mode: str, pixels: bytes = bytes(64), **options: Any) -> bool:
    """Save 2x2 pixels, the first of these bytes. False: Pillow cannot write the format from the
    mode."""
    image = Image.new(mode, (2, 2))
    image.frombytes(pixels[: len(image.tobytes())])
    if mode in ("P", "PA"):
        image.putpalette(bytes(range(255, -1, -1)) * 3)
    if kind == "MPO":
        options |= {"save_all": True, "append_images": [image]}
    try:
        image.save(path, format=kind, **options)
    except (OSError, ValueError, KeyError):
        return False
    return True


def is_written(kind: str, mode: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        return saved(Path(folder) / "photo", kind, mode)


KINDS = [*FORMATS, "MPO", *["AVIF"] * features.check_module("avif")]
WRITTEN = [
    (kind, mode)
    for kind in KINDS
    for mode in MODES
    if (kind, mode) not in EXCLUDED and is_written(kind, mode)
]


def stored_rgba(path: Path) -> tuple[np.ndarray, str]:
    """[H, W, 4] float and the mode of the file's pixels, which Pillow may have converted when it
    saved them. CMYK is left to the caller."""
    with Image.open(path) as image:
        image.load()
        pixels, mode, palette = np.asarray(image), image.mode, image.getpalette("RGB")
        transparent = image.info.get("transparency")
    alpha = np.full(pixels.shape[:2], 255.0)
    if mode in ("LA", "PA", "RGBA"):
        alpha, pixels = pixels[..., -1].astype(float), pixels[..., :-1]
    if mode == "P" and isinstance(transparent, int):
        alpha = np.where(pixels == transparent, 0.0, 255.0)
    if mode in ("P", "PA"):
        colours = np.reshape(palette, (-1, 3))[pixels.reshape(2, 2)]
    elif mode.startswith("I"):
        colours = np.rint(pixels / 257)
    elif mode == "1":
        colours = pixels * 255.0
    elif mode == "YCbCr":
        light, blue, red = np.moveaxis(pixels - np.array([0.0, 128, 128]), -1, 0)
        green = light - 0.344136 * blue - 0.714136 * red
        colours = np.stack([light + 1.402 * red, green, light + 1.772 * blue], axis=-1)
    elif mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("LAB"), SRGB, "LAB", "RGB")
        colours = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels, mode="LAB"), lab))
    else:
        colours = pixels
    colours = np.rint(np.clip(colours, 0, 255))
    if colours.ndim == 2 or colours.shape[-1] == 1:
        colours = colours.reshape(2, 2, 1).repeat(3, axis=2)
    return np.concatenate([colours, alpha[..., None]], axis=-1), mode


@pytest.mark.parametrize(("kind", "mode"), WRITTEN)
@settings(examples, max_examples=10)
@given(
    pixels=st.binary(min_size=64, max_size=64), has_profile=st.booleans(), background=backgrounds
)
def test_whatever_pillow_writes_comes_out_as_an_independent_conversion_gives_it(
    tmp_path, kind, mode, pixels, has_profile, background
):
    path = tmp_path / "photo"
    assert saved(path, kind, mode, pixels)
    stored, its_mode = stored_rgba(path)
    icc = None
    if has_profile and kind not in ("BMP", "GIF") and its_mode != "LAB":
        icc = PROFILES.get(its_mode, WIDE_GAMUT)
        assert saved(path, kind, mode, pixels, icc_profile=icc)
    if its_mode == "CMYK":
        expected = inks_to_rgb(path, icc)
    else:
        alpha = stored[..., 3:] / 255
        colours = converted(stored[..., :3].astype(np.uint8), icc)
        expected = alpha * colours + (1 - alpha) * np.array(background)
    check(path, expected, background)


def inks_to_rgb(path: Path, icc: bytes | None) -> np.ndarray:
    with Image.open(path) as image:
        if not icc:
            return expected_pixels(np.asarray(image), "CMYK", np.zeros(0), None, (0, 0, 0))
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        transform = ImageCms.buildTransform(source, SRGB, "CMYK", "RGB")
        return np.asarray(ImageCms.applyTransform(image, transform)).astype(float)
