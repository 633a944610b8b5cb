"""A checkpoint file of the user's, opened but not read: its names, shapes and number formats at
once, each tensor when it is asked for. What the names mean lives in `key_maps.py`; files are
written by `trainer/checkpoint.py`."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

ENDINGS = (".safetensors", ".ckpt", ".pt")
MAX_HEADER = 100_000_000
"""Bytes; the format's own limit for .safetensors."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


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
        contents = _open_safetensors(path) if is_safetensors else _open_pickle(path)
        if not contents.shapes:
            raise ValueError(
                f"'{path.name}' holds no tensors. Choose a Stable Diffusion checkpoint."
            )
        self.shapes, self.dtypes = contents.shapes, contents.dtypes
        self.metadata, self._read = contents.metadata, contents.read

    def tensor(self, key: str) -> Tensor:
        """One tensor as it stands in the file, on the CPU. Not to be changed in place."""
        return self._read(key)

    def shape(self, key: str, num_dimensions: int) -> tuple[int, ...]:
        """The shape of a weight that must be there; ValueError if it is not or has another number
        of dimensions."""
        self.require(key)
        shape = self.shapes[key]
        if len(shape) != num_dimensions:
            raise ValueError(
                f"The weight '{key}' of '{self.path.name}' has the shape {list(shape)}, and one "
                f"with {num_dimensions} dimensions belongs there. The file is damaged: download it "
                "again, or choose another."
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
        """Of the whole file, in hexadecimal."""
        return self._sha256

    @cached_property
    def _sha256(self) -> str:
        digest = hashlib.sha256()
        with open(self.path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class _Contents:
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


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


def _cut_short(path: Path, whole: int | None = None) -> ValueError:
    expected = f", {path.stat().st_size} of {whole} bytes" if whole else ""
    return ValueError(
        f"'{path.name}' is cut short{expected}: the download or copy did not finish. "
        "Download it again."
    )


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"'{path.name}' is not a readable {path.suffix.lower()} file ({reason}). "
        "Download it again, or choose another."
    )


# -------------------------------------------------------------- .safetensors


def _open_safetensors(path: Path) -> _Contents:
    # Imported here: ComfyUI's start-up should not pay for it.
    from safetensors import SafetensorError, safe_open

    _refuse_wrong_length(path)
    try:
        file: Any = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise _unreadable(path, error) from error
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    dtypes = {key: _dtype(path, key, part.get_dtype()) for key, part in slices.items()}
    shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    return _Contents(shapes, dtypes, dict(file.metadata() or {}), file.get_tensor)


def _refuse_wrong_length(path: Path) -> None:
    """The format: 8 bytes of header length, the header in JSON, then the tensors' bytes."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header_end = 8 + int.from_bytes(file.read(8), "little")
        if size < 9:
            raise _cut_short(path)
        if file.read(1) != b"{" or header_end > MAX_HEADER:
            raise _unreadable(path, "it has no header")
        if header_end > size:
            raise _cut_short(path)
        file.seek(8)
        text = file.read(header_end - 8)
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        whole = header_end + max(ends, default=0)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise _unreadable(path, "its header is damaged") from error
    if size < whole:
        raise _cut_short(path, whole)


def _dtype(path: Path, key: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ValueError(
            f"The weight '{key}' of '{path.name}' has the number format {name}, and "
            f"{', '.join(_DTYPES)} can be read. Choose the fp32, fp16 or bf16 version of this "
            "checkpoint."
        )
    return _DTYPES[name]


def _words(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --------------------------------------------------------------- .ckpt, .pt


class _Inert:
    """Stands for whatever old checkpoints hold beside their tensors, and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# The original Stable Diffusion 1 files name these; without stand-ins, none of them would open.
_STAND_INS: list[Any] = [
    type(name, (_Inert,), {"__module__": module})
    for module, name in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"),
        ("numpy.core.multiarray", "scalar"),
        ("numpy._core.multiarray", "scalar"),
        ("numpy", "dtype"),
        ("numpy.dtypes", "Float64DType"),
        ("_codecs", "encode"),
    )
]


def _open_pickle(path: Path) -> _Contents:
    tensors = _tensors_in(_load_pickle(path))
    return _Contents(
        shapes={key: tuple(tensor.shape) for key, tensor in tensors.items()},
        dtypes={key: tensor.dtype for key, tensor in tensors.items()},
        metadata={},
        # Tensors of a pickle may share memory, be expanded or carry gradients; a copy does not.
        read=lambda key: tensors[key].detach().clone(memory_format=torch.contiguous_format),
    )


def _load_pickle(path: Path) -> Any:
    is_zip = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK" and not is_zip:
        raise _cut_short(path)
    if start != b"PK" and start[:1] != b"\x80":
        raise _unreadable(path, "it has no header")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_zip)
    except UnpicklingError as error:
        raise ValueError(
            f"'{path.name}' holds more than numbers: opening it would run code that it brings "
            "along, which could do anything on this computer. Choose the .safetensors version of "
            "this checkpoint."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError) as error:
        raise _unreadable(path, str(error).split("\n")[0]) from error


def _tensors_in(contents: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which trainers wrap as "state_dict" and textual inversion as
    "string_to_param"."""
    for wrapper in ("state_dict", "string_to_param"):
        if isinstance(contents, dict) and isinstance(contents.get(wrapper), dict):
            contents = contents[wrapper]
    if not isinstance(contents, dict):
        return {}
    return {str(key): value for key, value in contents.items() if isinstance(value, Tensor)}
