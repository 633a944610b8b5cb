"""From an image file to pixels of the training size: opened, turned upright, made opaque, resized
and cropped; never stretched.

Shapes: H W pixels."""

from __future__ import annotations

import logging
import math
import random
import warnings
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageColor, UnidentifiedImageError
from torch import Tensor

from ..families.base import Framing
from ..storage.hashing import sha256_of

logger = logging.getLogger(__name__)

Color = tuple[int, int, int]
Place = tuple[float, float]
"""Where a crop lies in what there is to cut off: (0, 0) is left and top, (0.5, 0.5) the centre."""

CENTER: Place = (0.5, 0.5)
# Pillow knows more formats; some of them start other programs, and none is needed here.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, what turns the stored picture upright."""
WHITE_IS_ZERO = 0
"""The photometric interpretation of TIFF files that store negatives."""


def parse_color(text: str) -> Color:
    """Red, green and blue of a colour's name or #rrggbb."""
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
    """The image upright, in sRGB, its transparent parts on the background; of several frames the
    first, with a warning.

    ValueError says why a file cannot be read, is too large, or is in a format whose brightness has
    no fixed scale.
    """
    image = _open(path)
    picture = _to_srgb(_to_8_bits(image, path), image.info.get("icc_profile"), path)
    if picture.mode == "RGBA":
        opaque = Image.new("RGBA", picture.size, background)
        picture = Image.alpha_composite(opaque, picture)
    turn = TO_UPRIGHT.get(_orientation(image, path))
    picture = picture.convert("RGB")
    return picture if turn is None else picture.transpose(turn)


def require_size(path: Path, image: Image.Image, size: tuple[int, int]) -> None:
    """ValueError if the image would have to be enlarged to cover the size."""
    if is_smaller(image, size):
        wanted = f"resolution {size[0]}" if size[0] == size[1] else f"size {size[0]}x{size[1]}"
        raise ValueError(
            f"'{path.name}' is {image.width}x{image.height} pixels, smaller than the training "
            f"{wanted}. Use larger images, lower the resolution or allow upscaling."
        )


def is_smaller(image: Image.Image, size: tuple[int, int]) -> bool:
    return image.width < size[0] or image.height < size[1]


def draw_place(path: Path, seed: int) -> Place:
    """A random place to crop at, decided by the seed and the file's content alone, so that it does
    not depend on the other images, their order or their names."""
    content = sha256_of(path)
    rng = random.Random(f"{seed} {content}")
    return rng.random(), rng.random()


def fit(
    image: Image.Image, size: tuple[int, int], *, place: Place = CENTER, mirrored: bool = False
) -> tuple[Tensor, Framing]:
    """Pixels [3, H, W] in [-1, 1] of a width and height: the image scaled alike in both directions
    until it covers them, and what is too much cut off."""
    width, height = size
    scale = max(Fraction(width, image.width), Fraction(height, image.height))
    spare = (math.floor(image.width * scale) - width, math.floor(image.height * scale) - height)
    left, top = (int((room + 1) * share) for room, share in zip(spare, place, strict=True))
    # Cut and scaled at once: scaling to whole pixels first would stretch by up to half a pixel.
    corner = float(left / scale), float(top / scale)
    end = float((left + width) / scale), float((top + height) / scale)
    scaled = image.resize(size, Image.Resampling.LANCZOS, (*corner, *end))
    pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1).float() / 127.5 - 1
    crop = (spare[0] - left, top) if mirrored else (left, top)
    framing = Framing(original_size=image.size, crop=crop, size=size)
    return pixels.flip(2) if mirrored else pixels.contiguous(), framing


def _open(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of images above its limit, and refuses those above twice its limit.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                _warn_of_more_frames(image, path)
                image.load()
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"'{path.name}' is too large. {error} Make it smaller.") from error
    except FileNotFoundError:
        raise
    # Decoders raise all sorts of exceptions at damaged data.
    except Exception as error:
        raise ValueError(
            f"'{path.name}' cannot be read as an image: {_reason(path, error)}. Replace it, or "
            "remove it."
        ) from error


def _warn_of_more_frames(image: Image.Image, path: Path) -> None:
    # Telephones hide further pictures of the same moment in their JPEG files.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        logger.warning(
            "'%s' holds several pictures. Only the first is used: save the others as files of "
            "their own if they are wanted.", path.name,
        )  # fmt: skip


def _reason(path: Path, error: Exception) -> str:
    if path.stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"its content is none of {', '.join(FORMATS)}"
    return str(error) or type(error).__name__


def _orientation(image: Image.Image, path: Path) -> int:
    """EXIF's number for how the camera was held; 1, upright, if the file does not say."""
    try:
        # Read only after loading: Pillow turns TIFF files itself then, and takes the number away.
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:
        logger.warning(
            "The EXIF data of '%s' cannot be read (%s). It is taken to be upright.",
            path.name,
            error,
        )
        return 1


def _to_8_bits(image: Image.Image, path: Path) -> Image.Image:
    """The image in mode L, RGB, RGBA or CMYK."""
    is_16_bit_png = image.mode == "I" and image.format == "PNG"  # as older Pillow reads them
    if image.mode.startswith("I;16") or is_16_bit_png:
        image = _grey_16_to_8_bits(image)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"'{path.name}' holds numbers that have no fixed black and white (32 bits, floating or "
            "signed). Save it with 8 or 16 bits per channel."
        )
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")


def _grey_16_to_8_bits(image: Image.Image) -> Image.Image:
    """Mode L, or LA where one level of grey stands for transparency. Pillow's own conversion cuts
    everything above 255 instead of scaling it."""
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


def _to_srgb(image: Image.Image, profile: bytes | None, path: Path) -> Image.Image:
    """The image with its colour profile applied, in mode RGB or RGBA; unchanged without one."""
    if not profile:
        return image
    mode = "RGBA" if image.mode == "RGBA" else "RGB"
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        description = ImageCms.getProfileDescription(source)
        if "sRGB" in description and "linear" not in description.lower():
            return image
        target = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode=mode) or image
    except (ImageCms.PyCMSError, OSError, ImportError) as error:
        logger.warning(
            "The colour profile of '%s' cannot be used (%s). Its colours are taken to be sRGB.",
            path.name, error,
        )  # fmt: skip
        return image
