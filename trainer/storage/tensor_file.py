"""Writes .safetensors files one tensor at a time, so that not all of them need to be in memory as
with the library's `save_file`, whose files are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {
    "I64": torch.int64,
    "F64": torch.float64,
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes by their names in the format, in the order in which tensors are in a file: those with
larger numbers come first, so that all numbers are aligned."""
ALIGNMENT = 8
"""Bytes of which the header's length is a multiple."""


@dataclass(frozen=True, slots=True)
class TensorToWrite:
    """A tensor of a new file, computed when it is its turn."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: Callable[[], Tensor]
    """Returns the tensor, on any device."""

    @classmethod
    def of(cls, tensor: Tensor) -> TensorToWrite:
        """A tensor that exists already."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write(path: Path, tensors: Mapping[str, TensorToWrite], metadata: Mapping[str, str]) -> None:
    """Write a file, replacing an existing one. Raises OSError if the disk is full or similar."""
    ranks = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
    names = sorted(tensors, key=lambda name: (ranks[tensors[name].dtype], name))
    header = _header({name: tensors[name] for name in names}, metadata)
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            _write_tensor(file, tensors[name])


def _header(tensors: Mapping[str, TensorToWrite], metadata: Mapping[str, str]) -> bytes:
    """As JSON, filled up with spaces."""
    if not all(isinstance(text, str) for text in metadata.values()):
        raise TypeError(f"Metadata must be strings, got {dict(metadata)}.")
    dtype_names = {dtype: name for name, dtype in DTYPES.items()}
    contents: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.num_bytes
        contents[name] = {
            "dtype": dtype_names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    header = json.dumps(contents, ensure_ascii=False, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % ALIGNMENT)


def _write_tensor(file: IO[bytes], tensor: TensorToWrite) -> None:
    values = tensor.compute().detach().cpu().contiguous()
    assert (tuple(values.shape), values.dtype) == (tensor.shape, tensor.dtype)
    if values.numel():
        file.write(values.flatten().view(torch.uint8).numpy().data)
