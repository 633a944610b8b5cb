"""The caption files of images: which file belongs to which image, and what they say."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ..console import beginning
from ..storage.disk_errors import naming
from ..storage.names import printable

CAPTION_ENDINGS = (".txt", ".caption")
"""The first has priority if an image has several captions."""
MAX_BYTES = 100_000
"""Of a caption file. A text encoder reads a few hundred characters."""
_FILLERS = {
    "a", "an", "and", "at", "by", "close", "drawing", "image", "in", "is", "it", "its", "of", "on",
    "one", "painting", "photo", "photograph", "picture", "portrait", "shot", "style", "the", "this",
    "up", "with",
}  # fmt: skip
"""Words of prompts that do not name a subject."""


def key(name: str) -> str:
    """Equal for names that differ only in case or in how accents are encoded."""
    return unicodedata.normalize("NFC", name).casefold()


class CaptionFiles:
    """The caption files of one folder, by the image to which they belong: photo.jpg has the
    captions photo.txt, photo.jpg.txt, photo.caption or photo.jpg.caption, in this order."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._by_name: dict[str, list[Path]] = {}
        for file in files:
            if file.suffix.lower() in CAPTION_ENDINGS and file.is_file():
                self._by_name.setdefault(key(file.name), []).append(file)

    def of(self, image: Path) -> list[Path]:
        """All caption files of an image, first the one to use. [] if there are none."""
        return [file for name in _caption_names(image) for file in self._named(name)]

    def _named(self, name: str) -> list[Path]:
        """On some systems, names that differ only in case are different files."""
        found = self._by_name.get(key(name), [])
        return sorted(found, key=lambda file: (file.name != name, file.name))


def _caption_names(image: Path) -> Iterator[str]:
    for ending in CAPTION_ENDINGS:
        yield image.stem + ending
        if image.suffix:
            yield image.name + ending


def new_caption_file(image: Path, others: Iterable[Path]) -> Path:
    """Where to write the first caption of an image: photo.txt, or photo.jpg.txt if one of the other
    images would share photo.txt."""
    is_shared = any(key(other.stem) == key(image.stem) for other in others if other != image)
    stem = image.name if is_shared else image.stem
    return image.with_name(stem + CAPTION_ENDINGS[0])


def read_caption(file: Path) -> str:
    """The text of a caption file, stripped. Raises ValueError if it is too large, or not UTF-8, nor
    UTF-16 with a byte order mark."""
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(
            f"The caption '{file}' has {size} bytes, but at most {MAX_BYTES} are possible. Shorten "
            "it."
        )
    try:
        with naming(file):
            text = file.read_text(_encoding(file)).strip()
    except UnicodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"The caption '{file}' is not UTF-8 text. Save it as UTF-8.")
    return text


def _encoding(file: Path) -> str:
    with file.open("rb") as opened:
        mark = opened.read(2)
    return "utf-16" if mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def missing_subject(captions: Mapping[Path, str], prompt: str) -> str:
    """A warning if captions of photos contain no word for the subject, or "". `captions` has each
    photo's own caption, `prompt` is the instance prompt."""
    words = _subject(prompt)
    missing = [(path, text) for path, text in captions.items() if not _has_any(text, words)]
    if not words or not missing:
        return ""
    path, text = missing[0]
    return (
        f"{len(missing)} of {len(captions)} captions contain none of the words {', '.join(words)} "
        f"of the prompt '{prompt}', so their photos do not teach these words, such as "
        f"'{printable(path.name)}' with '{beginning(text)}'. Add the words for the subject to the "
        "captions."
    )


def _subject(prompt: str) -> list[str]:
    return [word for word in dict.fromkeys(_words(prompt)) if word not in _FILLERS]


def _has_any(caption: str, words: Sequence[str]) -> bool:
    # By their beginnings, because of plurals and of languages that add particles to words.
    return any(other.startswith(word) for other in _words(caption) for word in words)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", key(text))
