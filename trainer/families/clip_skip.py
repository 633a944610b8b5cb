"""Clip skip: the layer of the text encoders whose output is used. 1 is the last layer, 2 the
penultimate, as other programs count.

A checkpoint or embedding draws well only with the clip skip that it was trained with, so the files
that this trainer writes record it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..storage.names import shown_name
from .files import SAFETENSORS, CheckpointFile

logger = logging.getLogger(__name__)

CLIP_SKIP_KEY = "dreambooth.clip_skip"
"""The metadata key of the clip skip that a file was trained with."""
OTHERS_KEY = "ss_clip_skip"
"""The key that other trainers write. It is not followed, because files that this trainer wrote
before it had a clip skip may have kept the value of their base model."""
LAST_LAYER = 1


def files_of(base: Path, embedding: Path | None, loras: Sequence[Path] = ()) -> list[Path]:
    """The files that may record a clip skip, those first that count more."""
    return [*([embedding] if embedding else []), *reversed(loras), base]


def default_clip_skip(files: Iterable[Path], usual: int = LAST_LAYER) -> int:
    """The clip skip to use if none is set: the first one recorded in the files, else the usual one
    of the model's family."""
    return _default(_recorded(files), usual)


def choose_clip_skip(given: int | None, files: Iterable[Path], usual: int = LAST_LAYER) -> int:
    """The clip skip to use with these files; `given` is the user's setting, if any. Warns if a file
    records another one."""
    recorded = list(_recorded(files))
    chosen = _default(recorded, usual) if given is None else given
    for path, key, value in recorded:
        if value != chosen:
            logger.warning(
                "'%s' was trained with clip skip %d (%s in its metadata), but clip skip %d is "
                "used. Set clip_skip to %d to use the file as it was trained.",
                shown_name(path), value, key, chosen, value,
            )  # fmt: skip
    if given is None and chosen != usual:
        logger.info("Clip skip %d is used, as recorded in the file.", chosen)
    return chosen


def _default(recorded: Iterable[tuple[Path, str, int]], usual: int) -> int:
    return next((value for _, key, value in recorded if key == CLIP_SKIP_KEY), usual)


def _recorded(files: Iterable[Path]) -> Iterator[tuple[Path, str, int]]:
    """Each file that records a clip skip, with the key and the value."""
    for path in files:
        if path.suffix.lower() not in SAFETENSORS:
            continue  # other files have no metadata
        metadata = CheckpointFile(path).metadata
        for key in (CLIP_SKIP_KEY, OTHERS_KEY):
            text = metadata.get(key, "")
            # Kohya writes "None" if clip skip was not set.
            if text.isascii() and text.isdecimal() and len(text) < 4 and int(text) >= LAST_LAYER:
                yield path, key, int(text)
                break
