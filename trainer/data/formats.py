"""Which format an image file has, by its content, and whether it can be read here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from PIL import features

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""Pillow can read more formats, but some of them start other programs."""
IMAGE_ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""The usual ones. Messages name them."""
RAW, HEIC, AVIF, JPEG_XL, JPEG_2000 = "camera raw", "HEIC", "AVIF", "JPEG XL", "JPEG 2000"
_MARKS = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (8, b"WEBPVP8", "WEBP"),
    (8, b"CR\x02", RAW),  # a TIFF file for programs that do not know it
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (0, b"II+\0", "TIFF"),
    (0, b"MM\0+", "TIFF"),
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"IIU\0", RAW),
    (0, b"IIRO", RAW),
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"FOVb", RAW),
    (4, b"JXL \r\n\x87\n", JPEG_XL),
    (4, b"jP  \r\n\x87\n", JPEG_2000),
    (0, b"\xff\x4f\xff\x51", JPEG_2000),
    (0, b"8BPS", "Photoshop"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance"),
)
"""Position, bytes and format. The first that matches decides."""
_BRANDS = {
    b"avif": AVIF, b"avis": AVIF, b"crx ": RAW, b"heic": HEIC, b"heix": HEIC, b"heim": HEIC,
    b"heis": HEIC, b"hevc": HEIC, b"hevx": HEIC, b"mif1": HEIC, b"msf1": HEIC,
}  # fmt: skip
"""Formats of files that begin with a list of brands. The first brand here decides, whatever the
order in the file: AVIF files may name "mif1" too."""
_RAW_ENDINGS = (
    ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw",
    ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
_READABLE_BY_ENDING = {
    **dict.fromkeys((".jpeg", ".jpg", ".jfif", ".jif", ".jpe", ".mpo"), "JPEG"),
    **dict.fromkeys((".apng", ".png"), "PNG"),
    **dict.fromkeys((".bmp", ".dib"), "BMP"),
    **dict.fromkeys((".tif", ".tiff"), "TIFF"),
    **dict.fromkeys((".heic", ".heif", ".hif"), HEIC),
    ".avif": AVIF, ".gif": "GIF", ".webp": "WEBP",
}  # fmt: skip
"""Formats that can be read, some of them not everywhere."""
_BY_ENDING = {
    **_READABLE_BY_ENDING,
    **dict.fromkeys(_RAW_ENDINGS, RAW),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), JPEG_2000),
    ".jxl": JPEG_XL, ".psd": "Photoshop", ".exr": "OpenEXR", ".hdr": "Radiance",
    ".svg": "SVG", ".tga": "Targa", ".xcf": "GIMP", ".ppm": "PPM", ".pgm": "PGM",
}  # fmt: skip
"""Formats of files whose content has no known mark: some formats have none, and files may be
damaged."""
READABLE_ENDINGS, PHOTO_ENDINGS = tuple(_READABLE_BY_ENDING), tuple(_BY_ENDING)


def format_of(path: Path) -> str:
    """The format of an image file, such as JPEG or HEIC: by its content, or else by its extension.
    "" if it is none that is known."""
    ending = path.suffix.lower()
    by_content = _by_content(_head(path))
    # Most raw formats are TIFF files with a small preview, which is all that Pillow would read.
    if by_content == "TIFF" and ending in _RAW_ENDINGS:
        return RAW
    return by_content or _BY_ENDING.get(ending, "")


def is_readable(name: str) -> bool:
    """Whether a format that `format_of` returns can be read here."""
    if name == HEIC:
        return _load_pillow_heif()
    return name in FORMATS or (name == AVIF and _has_avif())


def pillow_formats(name: str) -> tuple[str, ...]:
    """The formats that Pillow may try on a file of the format `name`: a closed list."""
    if name == HEIC and _load_pillow_heif():
        return (*FORMATS, "HEIF")
    return (*FORMATS, AVIF) if name == AVIF and _has_avif() else FORMATS


def require_readable(path: Path, name: str) -> None:
    """Raises ValueError if an image cannot be read because of its format `name`."""
    if name and not is_readable(name):
        raise ValueError(
            f"'{path.name}' is an image in the format {name}, which cannot be read. "
            f"{how_to_read(name)}"
        )


def how_to_read(name: str) -> str:
    """What a user can do about files of a format that cannot be read here."""
    run = f'To read such photos, run \'"{sys.executable}" -m pip install'
    if name == HEIC:
        return f"{run} pillow-heif', or convert them to JPEG."
    if name == AVIF and AVIF.lower() not in features.modules:
        return f"{run} --upgrade pillow' and restart, or convert them to JPEG."
    return "Convert such photos to JPEG or PNG."


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _by_content(head: bytes) -> str:
    if head[4:8] == b"ftyp":
        brands = {head[start : start + 4] for start in range(8, len(head), 4)}
        return next((name for brand, name in _BRANDS.items() if brand in brands), "")
    # "BM" alone could also begin a text. The size of the second header follows 12 bytes later.
    if head[:2] == b"BM" and head[14:18] in [
        bytes((n, 0, 0, 0)) for n in (12, 40, 52, 56, 108, 124)
    ]:
        return "BMP"
    return next((name for at, mark, name in _MARKS if head[at : at + len(mark)] == mark), "")


def _has_avif() -> bool:
    # Pillow reads AVIF from 11.3 on, if it was built so.
    return AVIF.lower() in features.modules and features.check_module(AVIF.lower())


def _load_pillow_heif() -> bool:
    """Let Pillow open HEIC files, with an optional package. False: it is not installed. Called only
    for HEIC files, because it changes Pillow for the whole process."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except (ImportError, OSError):
        return False
    return True
