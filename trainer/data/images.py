"""Reads image files: opened, turned upright, in sRGB, made opaque."""

from __future__ import annotations

import logging
import reprlib
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from ..storage.names import printable
from .formats import FORMATS, format_of, pillow_formats, require_readable

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]
"""Red, green and blue, each from 0 to 255."""

MAX_PIXELS = 220_000_000
"""The largest photo that is read, a JPEG. Other formats have Pillow's limit, about 89 megapixels,
because their decoders need memory for every pixel."""
MIN_BYTES_PER_PIXEL = 1 / 256
"""A JPEG below this, less than a picture of one colour needs, only claims to be large."""
UNTURNED = 1
ORIENTATIONS = range(9)
"""What EXIF data may contain as orientation. 0, which cameras write too, stands for unknown."""
WHITE_IS_ZERO = 0
"""The photometric interpretation of TIFF files that store negatives."""


def parse_color(text: str) -> Color:
    """The colour of a name such as white, or of #rrggbb. Raises ValueError for anything else."""
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        alpha = [0]
    if alpha:
        raise ValueError(
            f"dataset.background must be a colour name such as white, or #rrggbb, got '{text}'."
        )
    return red, green, blue


def read_image(path: Path, background: Color) -> Image.Image:
    """The image in mode RGB: upright, in sRGB, transparent parts on the background. If it has
    several frames, the first one, with a warning.

    Raises ValueError if the file cannot be read, is too large, or stores brightness without a fixed
    scale.
    """
    return on_background(read_with_alpha(path), background)


def read_with_alpha(path: Path) -> Image.Image:
    """The same in mode RGBA if the image has transparent parts, otherwise in another mode."""
    # One name for all stages: the pixels of a large photo fill hundreds of MB, so none is kept.
    image = _open(path)
    _turn_upright(image, path)
    profile, is_grey = image.info.get("icc_profile"), Image.getmodebase(image.mode) == "L"
    image = _to_8_bits(image, path)
    return _to_srgb(image, profile, path, is_grey=is_grey)


def on_background(image: Image.Image, color: Color) -> Image.Image:
    """The image in mode RGB, transparent parts on a colour."""
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, color), image)
    return _in_mode("RGB", image)


def _open(path: Path) -> Image.Image:
    name = format_of(path)
    require_readable(path, name)
    try:
        with warnings.catch_warnings():
            # Pillow only warns about images up to twice its limit, and refuses larger ones.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Opened by path, an uncompressed TIFF would be mapped into memory instead of read:
            # read-only, and scrambled if it is stored turned.
            with path.open("rb") as file, Image.open(file, formats=pillow_formats(name)) as image:
                _warn_if_animated(image, path)
                image.load()
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        if name == "JPEG" and (halved := _open_halved(path)):
            return halved
        raise ValueError(f"'{path.name}' is too large. {error} Make it smaller.") from error
    except FileNotFoundError:
        raise
    # Damaged data makes decoders raise all kinds of exceptions.
    except Exception as error:
        raise _unreadable(path, error) from error


def _open_halved(path: Path) -> Image.Image | None:
    """A JPEG larger than Pillow's limit, at half its width and height, which the decoder computes
    without the memory for all pixels. None: it is too large for this, too. Raises ValueError if it
    is damaged."""
    try:
        with path.open("rb") as file:
            image = JpegImageFile(file)  # Image.open would refuse it
            width, height = image.size
            if not width * height <= min(MAX_PIXELS, path.stat().st_size / MIN_BYTES_PER_PIXEL):
                return None
            image.draft(None, (width // 2, height // 2))
            image.load()
            return image
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"'{path.name}' cannot be read as an image: {_reason(path, error)}. Replace it, or remove "
        "it."
    )


def _warn_if_animated(image: Image.Image, path: Path) -> None:
    # MPO: a JPEG in which a phone stores further images of the same moment, such as a depth map.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        logger.warning(
            "'%s' has several frames. Only the first is used. Save the others as separate files to "
            "train on them too.", printable(path.name),
        )  # fmt: skip


def _reason(path: Path, error: Exception) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def _turn_upright(image: Image.Image, path: Path) -> None:
    """Apply the orientation in the image's EXIF data, if there is one. In place, because a new
    image would lose the file's format and tags. Pillow has turned TIFF files already."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
        left = image.getexif().get(ExifTags.Base.Orientation, UNTURNED)
        if left not in ORIENTATIONS:
            raise ValueError(f"its orientation is {reprlib.repr(left)}")
    # Raised while the EXIF data is read, or while Pillow writes it again after turning the image.
    except Exception as error:
        logger.warning(
            "The EXIF data of '%s' is damaged (%s). If the photo is not upright, rotate it and "
            "save it again.", printable(path.name), error,
        )  # fmt: skip


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image in mode L, RGB, RGBA or CMYK."""
    is_16_bit_png = image.mode == "I" and image.format == "PNG"  # older Pillow reads them so
    if image.mode.startswith("I;16") or is_16_bit_png:
        image = _grey_16_to_8_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"'{path.name}' stores 32-bit, floating-point or signed values, which have no fixed "
            "black and white. Save it with 8 or 16 bits per channel."
        )
    if image.has_transparency_data:
        return _in_mode("RGBA", image)
    return image if image.mode in ("L", "CMYK") else _in_mode("RGB", image)


def _in_mode(mode: str, image: Image.Image) -> Image.Image:
    """The image itself if it has the mode, which `convert` would copy."""
    return image if image.mode == mode else image.convert(mode)


def _grey_16_to_8_bits(image: Image.Image) -> Image.Image:
    """Mode L, or LA if one grey level stands for transparency. Pillow's own conversion clips values
    at 255 instead of scaling them."""
    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(ExifTags.Base.BitsPerSample, (16,))[0] - 1
    levels = np.asarray(image).astype(np.uint32)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO:
        levels = white - levels
    grey = Image.fromarray(((levels * 255 + white // 2) // white).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey.putalpha(Image.fromarray(np.where(levels == transparent, 0, 255).astype(np.uint8)))
    return grey


def _to_srgb(
    image: Image.Image, profile: bytes | None, path: Path, *, is_grey: bool
) -> Image.Image:
    """The image in mode RGB or RGBA, converted by its colour profile. Unchanged without one.
    The given image may be overwritten.

    `is_grey`: red, green and blue are equal, whatever the mode."""
    if not profile:
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        description = ImageCms.getProfileDescription(source)
        if "sRGB" in description and "linear" not in description.lower():
            return image
        target = ImageCms.createProfile("sRGB")
        if is_grey and image.mode != "L" and source.profile.xcolor_space.strip() == "GRAY":
            # Such a profile cannot convert the red, green and blue of a grey image with alpha.
            grey = ImageCms.profileToProfile(image.getchannel(0), source, target, outputMode="RGB")
            return _with_alpha_of(image, grey) if grey else image
        converted = ImageCms.profileToProfile(
            image, source, target, outputMode=mode, inPlace=image.mode == mode
        )
        return converted or image
    except (ImageCms.PyCMSError, OSError, ImportError) as error:
        logger.warning(
            "The colour profile of '%s' cannot be used (%s). Its colours are treated as sRGB.",
            printable(path.name), error,
        )  # fmt: skip
        return image


def _with_alpha_of(image: Image.Image, colours: Image.Image) -> Image.Image:
    if image.mode == "RGBA":
        colours.putalpha(image.getchannel("A"))
    return colours
