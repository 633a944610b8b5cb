"""A checkpoint file of the user's, opened but not read: its names, shapes and number formats at
once, each tensor when it is asked for. What the names mean lives in `key_maps.py`; files are
written by `trainer/checkpoint.py`."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from ..storage.hashing import sha256_of
from ..storage.names import is_text
from .containers import open_pickle, open_safetensors

ENDINGS = (".safetensors", ".ckpt", ".pt")


class CheckpointFile:
    """A .safetensors, .ckpt or .pt file. Opening one reads no more than its table of contents, and
    never runs code that the file brings along."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    """By tensor name."""
    dtypes: dict[str, torch.dtype]
    """By tensor name."""
    metadata: dict[str, str]
    """Of a .safetensors header; empty for the other endings."""

    def __init__(self, path: Path) -> None:
        """FileNotFoundError if there is no such file, ValueError if it is no checkpoint."""
        _refuse_what_is_no_checkpoint(path)
        self.path = path
        is_safetensors = path.suffix.lower() == ".safetensors"
        contents = open_safetensors(path) if is_safetensors else open_pickle(path)
        if not contents.shapes:
            raise ValueError(
                f"'{path.name}' holds no tensors. Choose a Stable Diffusion checkpoint."
            )
        self.shapes, self.dtypes = contents.shapes, contents.dtypes
        self.metadata, self._read = contents.metadata, contents.read

    def tensor(self, key: str) -> Tensor:
        """One tensor as it stands in the file, on the CPU. Not to be changed in place.

        ValueError for one that would take more memory than the file has bytes.
        """
        shape = self.shapes[key]
        # A shape with a 0 in it takes nothing, and its other numbers could be anything.
        num_bytes = math.prod(max(side, 1) for side in shape) * self.dtypes[key].itemsize
        if num_bytes > self.path.stat().st_size:
            raise ValueError(
                f"The weight '{key}' of '{self.path.name}' has the shape {list(shape)}, which is "
                "more than the whole file holds. The file is damaged: download it again, or choose "
                "another."
            )
        return self._read(key)

    def shape(self, key: str, num_dimensions: int) -> tuple[int, ...]:
        """The shape of a weight that must be there; ValueError if it is not, is empty or has
        another number of dimensions."""
        self.require(key)
        shape = self.shapes[key]
        if len(shape) != num_dimensions or 0 in shape:
            raise ValueError(
                f"The weight '{key}' of '{self.path.name}' has the shape {list(shape)}, and one "
                f"with {num_dimensions} dimensions above 0 belongs there. The file is damaged: "
                "download it again, or choose another."
            )
        return shape

    def require(self, key: str) -> None:
        """ValueError if there is no such weight, or it holds no floating-point numbers."""
        if key not in self.shapes:
            raise ValueError(
                f"'{self.path.name}' lacks the weight '{key}', which its other weights call for. "
                "The file is incomplete: download it again, or choose another."
            )
        if not self.dtypes[key].is_floating_point:
            raise ValueError(
                f"The weight '{key}' of '{self.path.name}' holds {_words(self.dtypes[key])} "
                "numbers, and only floating-point ones can be trained. Choose the fp32, fp16 or "
                "bf16 version of this checkpoint."
            )

    def sha256(self) -> str:
        """Of the whole file, in hexadecimal. It is read once, unless it is written to."""
        stamp = _stamp(self.path)
        if stamp not in _HASHES:
            _HASHES[stamp] = sha256_of(self.path)
        return _HASHES[stamp]


def remember_sha256(path: Path, sha256: str) -> None:
    """Spare a file of several GB the reading: its hash is known, and it was not written to."""
    _HASHES[_stamp(path)] = sha256


_Stamp = tuple[Path, int, int]
_HASHES: dict[_Stamp, str] = {}
"""By path, size and time of the last change."""


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return path.resolve(), stat.st_size, stat.st_mtime_ns


def _refuse_what_is_no_checkpoint(path: Path) -> None:
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder, not a checkpoint. Choose a single .safetensors or .ckpt file."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no file {path}. Name an existing .safetensors or .ckpt checkpoint."
        )
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"'{path.name}' ends in '{path.suffix}', and checkpoints end in "
            f"{', '.join(ENDINGS)}. Choose one of those."
        )
    if not is_text(str(path)):
        raise ValueError(
            f"The path {str(path)!r} is not valid Unicode, and checkpoints cannot be read from "
            "there. Rename the file or its folder."
        )
    with open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(
            f"'{path.name}' is a web page, not a checkpoint: the download failed. "
            "Download it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"'{path.name}' is a Git LFS pointer, not a checkpoint: only the pointer was "
            "downloaded. Download the file itself, or run 'git lfs pull'."
        )


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
