"""A user's checkpoint or embedding: names, shapes and number formats are read when the file is
opened, tensors on demand. `key_maps.py` knows what the names mean; `trainer/checkpoint.py` writes
files."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..precision import dtype_name, is_coarse
from ..storage.disk_errors import naming
from ..storage.hashing import sha256_of
from ..storage.names import is_text, shown_name
from .containers import open_pickle, open_safetensors

SAFETENSORS = (".safetensors", ".sft")
ENDINGS = (".safetensors", ".ckpt", ".sft", ".pt", ".pth", ".bin", ".pkl")
"""Those that ComfyUI lists. All but those of safetensors files are pickles."""
DATA_PARALLEL = "module."
"""What torch's DataParallel puts in front of every name. ComfyUI does not read such names."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What a user was asked for, so that messages name it."""

    noun: str
    example: str
    """The noun with what is meant by it."""
    endings: tuple[str, ...]
    """Allowed extensions, in lower case; the usual ones first."""


CHECKPOINT = FileKind("checkpoint", "a Stable Diffusion checkpoint", ENDINGS)
EMBEDDING = FileKind(
    "embedding", "an embedding of textual inversion", (".safetensors", ".pt", ".bin", ".ckpt")
)
LORA = FileKind("LoRA", "a LoRA", (".safetensors", ".pt", ".ckpt", ".bin"))


class CheckpointFile:
    """A .safetensors file, or a pickle such as .ckpt. Opening it only reads its table of contents.
    Code in the file is never run."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    """By tensor name."""
    dtypes: dict[str, torch.dtype]
    """By tensor name."""
    metadata: dict[str, str]
    """From the header of a .safetensors file; empty for other files."""
    vae: CheckpointFile | None
    """The file whose VAE replaces this file's. None: this file's own is used."""
    num_bytes: int
    """The approximate size of a file with all these tensors in their number formats."""
    exact: Collection[str] = ()
    """As in `checkpoint.Original`."""
    notes: list[str]
    """What a trained checkpoint will not copy from the file, for the user."""
    overrides: dict[str, str]
    """Settings that change what the model of this file draws, by name; empty at their defaults."""

    def __init__(self, path: Path, kind: FileKind = CHECKPOINT) -> None:
        """Raises FileNotFoundError if the file does not exist, or ValueError if it is unusable."""
        _require(kind, path)
        self.path, self.kind = path, kind
        is_safetensors = path.suffix.lower() in SAFETENSORS
        open_it = open_safetensors if is_safetensors else open_pickle
        contents = open_it(path, kind.noun)
        if not contents.shapes:
            raise ValueError(f"'{shown_name(path)}' holds no tensors. Choose {kind.example}.")
        self.shapes, self.dtypes = contents.shapes, contents.dtypes
        self.metadata, self._read = contents.metadata, contents.read
        self._names: dict[str, str] = {}
        self._markers: set[str] = set()
        self._patches: dict[str, list[Callable[[Tensor], Tensor]]] = {}
        if all(key.startswith(DATA_PARALLEL) for key in self.shapes):
            self.rename({key.removeprefix(DATA_PARALLEL): key for key in self.shapes})
        self.vae: CheckpointFile | None = None
        self.overrides: dict[str, str] = {}
        self.notes: list[str] = []
        self.num_bytes = path.stat().st_size

    def leave_out(self, keys: Collection[str]) -> int:
        """Forget these tensors, so that they are neither read nor copied to a trained checkpoint.
        Returns their size in bytes."""
        num_bytes = self._size_of(keys)
        for key in keys:
            del self.shapes[key], self.dtypes[key]
        self.num_bytes -= num_bytes
        return num_bytes

    def add_marker(self, key: str) -> None:
        """Add an empty tensor, whose name says something of the model, to trained checkpoints."""
        self._markers.add(key)
        self.shapes[key], self.dtypes[key] = (0,), torch.float32

    def patch(self, key: str, change: Callable[[Tensor], Tensor]) -> None:
        """Let a tensor be changed whenever it is read. `change` takes and returns it in the file's
        shape, in any number format."""
        self._patches.setdefault(key, []).append(change)
        if is_coarse(self.dtypes[key]):
            self.num_bytes += math.prod(self.shapes[key])
            self.dtypes[key] = torch.float16

    @property
    def patched(self) -> Collection[str]:
        """The names of the tensors that are changed whenever they are read."""
        return self._patches.keys()

    def rename(self, names: Mapping[str, str]) -> None:
        """Keep only the tensors of `names`: the present name by the new one."""
        self._names = {new: self._names.get(old, old) for new, old in names.items()}
        self.shapes = {new: self.shapes[old] for new, old in names.items()}
        self.dtypes = {new: self.dtypes[old] for new, old in names.items()}

    def replace_vae(self, vae: CheckpointFile, prefix: str) -> None:
        """Use the VAE of another file, whose tensors all begin with `prefix`, in place of this
        file's. A trained checkpoint contains it."""
        self.leave_out([key for key in self.shapes if key.startswith(prefix)])
        self.shapes |= vae.shapes
        self.dtypes |= vae.dtypes
        self.num_bytes += vae._size_of(vae.shapes)
        self.vae = vae

    def _size_of(self, keys: Collection[str]) -> int:
        return sum(math.prod(self.shapes[key]) * self.dtypes[key].itemsize for key in keys)

    def tensor(self, key: str) -> Tensor:
        """One tensor on the CPU, in the file's number format, or in fp32 if it is patched. Do not
        change it in place.

        Raises ValueError if the tensor is larger than the whole file.
        """
        tensor = self._unpatched(key)
        for change in self._patches.get(key, ()):
            tensor = change(tensor)
        return tensor

    def _unpatched(self, key: str) -> Tensor:
        if self.vae and key in self.vae.shapes:
            return self.vae.tensor(key)
        if key in self._markers:
            return torch.empty(self.shapes[key])
        shape = self.shapes[key]
        # max: a tensor with a 0 in its shape needs no memory, but may claim any other sides.
        num_bytes = math.prod(max(side, 1) for side in shape) * self._smallest(key)
        if num_bytes > self.path.stat().st_size:
            raise ValueError(
                f"The weight '{key}' of '{self.name}' has the shape {list(shape)}, which is "
                "more than the whole file holds. The file is damaged: download it again, or choose "
                "another."
            )
        return self._read(self._names.get(key, key))

    def _smallest(self, key: str) -> int:
        """Bytes per number, at least: a patched tensor may have fewer in the file."""
        return 1 if key in self._patches else self.dtypes[key].itemsize

    def shape(self, key: str, num_dimensions: int) -> tuple[int, ...]:
        """The shape of a weight. Raises ValueError if the weight is missing, has no elements or has
        another number of dimensions."""
        self.require(key)
        shape = self.shapes[key]
        if len(shape) != num_dimensions or 0 in shape:
            raise ValueError(
                f"The weight '{key}' of '{self.name}' has the shape {list(shape)}, but must "
                f"have {num_dimensions} dimensions, all above 0. The file is damaged: download it "
                "again, or choose another."
            )
        return shape

    def require(self, key: str) -> None:
        """Raises ValueError if the weight is missing or does not hold floating-point numbers."""
        if key not in self.shapes:
            raise ValueError(
                f"'{self.name}' lacks the weight '{key}', which its other weights call for. "
                "The file is incomplete: download it again, or choose another."
            )
        if not self.dtypes[key].is_floating_point:
            raise ValueError(
                f"The weight '{key}' of '{self.name}' holds {dtype_name(self.dtypes[key])} "
                "numbers, but only floating-point numbers can be trained. Choose the fp32, fp16 or "
                f"bf16 version of this {self.kind.noun}."
            )

    def require_finite(self, key: str, values: Tensor) -> None:
        """Raises ValueError if a value of a weight [fp32] is infinite or NaN."""
        # If any value is not finite, the minimum or maximum is not. Finding them needs no memory.
        if torch.stack(values.aminmax()).isfinite().all():
            return
        num_bad = values.numel() - int(values.isfinite().sum())
        raise ValueError(
            f"The weight '{key}' of '{self.name}' holds {num_bad} numbers of {values.numel()} "
            "that are infinite or not a number (NaN) and would spoil every result. Download the "
            "file again, or choose another."
        )

    @property
    def name(self) -> str:
        """What messages call the file."""
        return shown_name(self.path)

    def sha256(self) -> str:
        """The hash of the whole file, in hexadecimal. Cached until the file changes."""
        key = self.path.resolve(), file_stamp(self.path)
        if key not in _HASHES:
            _HASHES[key] = sha256_of(self.path)
        return _HASHES[key]


def remember_sha256(path: Path, sha256: str) -> None:
    """Cache a hash that is already known, so that a file of several GB need not be read for it."""
    _HASHES[path.resolve(), file_stamp(path)] = sha256


Stamp = tuple[int, int]
_HASHES: dict[tuple[Path, Stamp], str] = {}
"""By path and stamp."""


def file_stamp(path: Path) -> Stamp:
    """The size of a file and the time of its last change in ns. A different stamp means that the
    file was written to."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _require(kind: FileKind, path: Path) -> None:
    usual = " or ".join(kind.endings[:2])
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not {_a(kind.noun)}. Choose a single {usual} file.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}. Name an existing {usual} {kind.noun}.")
    if path.suffix.lower() not in kind.endings:
        raise ValueError(
            f"'{shown_name(path)}' ends in '{path.suffix}', but {kind.noun}s end in "
            f"{', '.join(kind.endings)}. Choose one of those."
        )
    if not is_text(str(path)):
        raise ValueError(
            f"The path {str(path)!r} is not valid Unicode, so the {kind.noun} cannot be read. "
            "Rename the file or its folder."
        )
    with naming(path), open(path, "rb") as file:
        start = file.read(512).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(
            f"'{shown_name(path)}' is a web page, not {_a(kind.noun)}: the download failed. "
            "Download it again."
        )
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"'{shown_name(path)}' is a Git LFS pointer, not {_a(kind.noun)}: only the pointer was "
            "downloaded. Download the file itself, or run 'git lfs pull'."
        )


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
