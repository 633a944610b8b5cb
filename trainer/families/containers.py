"""Reads the two kinds of checkpoint files, .safetensors and the pickles in .ckpt, .pt and others.
Refuses damaged and malicious files before any tensor is read. Files of other kinds are refused in
`files.py`."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ..storage.disk_errors import naming
from ..storage.names import shown_name
from ..storage.tensor_file import DTYPES

MAX_HEADER = 10_000_000
"""Bytes of a .safetensors header. The format allows ten times as many, which could take minutes to
read. Stable Diffusion's headers have less than a fiftieth."""
MAX_REASON = 200
"""Characters of a library's error message that are shown. It may quote the file at any length."""

WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "string_to_param")
"""The names in a pickle under which trainers store the weights."""
MAX_WRAPPERS = 3
"""How deep the weights may be nested."""


@dataclass(frozen=True, slots=True)
class Contents:
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    metadata: dict[str, str]
    read: Callable[[str], Tensor]


def _cut_short(path: Path, whole: int | None = None) -> ValueError:
    expected = f", {path.stat().st_size} of {whole} bytes" if whole else ""
    return ValueError(
        f"'{shown_name(path)}' is cut short{expected}: the download or copy did not finish. "
        "Download it again."
    )


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(
        f"'{shown_name(path)}' is not a readable {path.suffix.lower()} file ({reason}). "
        "Download it again, or choose another."
    )


def _reason(error: Exception) -> str:
    """A library's error message as one short line."""
    return " ".join(str(error).split("\n")[0][:MAX_REASON].split()) or type(error).__name__


# -------------------------------------------------------------- .safetensors


def open_safetensors(path: Path, noun: str) -> Contents:
    """`noun` is what messages call the file, such as "checkpoint"."""
    # Imported here: ComfyUI's start-up should not pay for it.
    from safetensors import SafetensorError, safe_open

    _refuse_damaged_header(path)
    try:
        with naming(path):
            file: Any = safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise _unreadable(path, _reason(error)) from error
    slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    dtypes = {key: _dtype(path, key, part.get_dtype(), noun) for key, part in slices.items()}
    shapes = {key: tuple(part.get_shape()) for key, part in slices.items()}
    return Contents(shapes, dtypes, dict(file.metadata() or {}), file.get_tensor)


def _refuse_damaged_header(path: Path) -> None:
    """Raises ValueError if the file is damaged. Its format is: the header's length in 8 bytes, the
    header in JSON, then the tensors' bytes."""
    size = path.stat().st_size
    with naming(path), open(path, "rb") as file:
        header_end = 8 + int.from_bytes(file.read(8), "little")
        if size < 9:
            raise _cut_short(path)
        if file.read(1) != b"{":
            raise _unreadable(path, "it has no header")
        if header_end > MAX_HEADER:
            raise _unreadable(path, f"its header would have more than {MAX_HEADER} bytes")
        if header_end > size:
            raise _cut_short(path)
        file.seek(8)
        text = file.read(header_end - 8)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, "its header is damaged") from error
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    if not all(map(_is_entry, entries)):
        raise _unreadable(path, "its header is damaged")
    whole = header_end + max((entry["data_offsets"][1] for entry in entries), default=0)
    if size < whole:
        raise _cut_short(path, whole)


def _is_entry(entry: Any) -> bool:
    """Whether it looks like {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}."""
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("dtype"), str)
        and _are_lengths(entry.get("shape"))
        and _are_lengths(entry.get("data_offsets"))
        and len(entry["data_offsets"]) == 2
    )


def _are_lengths(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 2**63 for n in values)


def _dtype(path: Path, key: str, name: str, noun: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(
            f"The weight '{key}' of '{shown_name(path)}' has the number format {name}, but only "
            f"{', '.join(DTYPES)} can be read. Choose the fp32, fp16 or bf16 version of this "
            f"{noun}."
        )
    return DTYPES[name]


# --------------------------------------------------------------- .ckpt, .pt


class _Inert:
    """Replaces the objects that old checkpoints contain besides tensors. Does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Parameters(_Inert):
    """Replaces torch's nn.ParameterDict, in which the first program for textual inversion stored
    its vectors. Keeps them, and runs nothing of torch's class."""

    by_name: Any = None

    def __setstate__(self, state: Any) -> None:
        self.by_name = state.get("_parameters") if isinstance(state, dict) else None


# The original Stable Diffusion 1 files contain these, and would not open without the stand-ins.
_STAND_INS: list[Any] = [
    type(name, (base,), {"__module__": module})
    for module, name, base in (
        ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint", _Inert),
        ("numpy.core.multiarray", "scalar", _Inert),
        ("numpy._core.multiarray", "scalar", _Inert),
        ("numpy", "dtype", _Inert),
        ("numpy.dtypes", "Float64DType", _Inert),
        ("_codecs", "encode", _Inert),
        ("torch.nn.modules.container", "ParameterDict", _Parameters),
    )
]


_WOULD_RUN_CODE = ("GLOBAL", "call reduce", "create new object", "only build", "of storage")
"""Parts of torch's messages when it refuses a pickle that contains more than tensors."""


def open_pickle(path: Path, noun: str) -> Contents:
    """`noun` is what messages call the file, such as "checkpoint"."""
    tensors = _tensors_in(path, _load_pickle(path, noun), noun)
    return Contents(
        shapes={key: tuple(tensor.shape) for key, tensor in tensors.items()},
        dtypes={key: tensor.dtype for key, tensor in tensors.items()},
        metadata={},
        # A copy, because tensors of a pickle may share memory, be expanded or require gradients.
        read=lambda key: tensors[key].detach().clone(memory_format=torch.contiguous_format),
    )


def _load_pickle(path: Path, noun: str) -> Any:
    is_archive = _is_archive(path)
    with naming(path), open(path, "rb") as file:
        start = file.read(2)
    if not is_archive and b"PK".startswith(start):
        raise _cut_short(path)
    if not is_archive and start[:1] != b"\x80":
        raise _unreadable(path, "it has no header")
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=is_archive)
    except UnpicklingError as error:
        if not any(words in str(error) for words in _WOULD_RUN_CODE):
            raise _unreadable(path, "its contents are damaged or of an unknown kind") from error
        raise ValueError(
            f"'{shown_name(path)}' holds more than numbers: opening it would run code from the "
            "file, which could do anything on this computer. Choose the .safetensors version of "
            f"this {noun}."
        ) from error
    # Damaged contents raise all kinds of exceptions.
    except Exception as error:
        raise _unreadable(path, _reason(error)) from error


def _is_archive(path: Path) -> bool:
    """Whether the file is a complete zip archive. Raises ValueError if it is compressed."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_compressed = any(entry.compress_type for entry in archive.infolist())
    # Damaged archives raise all kinds of exceptions.
    except Exception:
        return False
    if is_compressed:
        # torch writes uncompressed archives, and would read compressed bytes as numbers.
        raise _unreadable(path, "it has been compressed")
    return True


def _unwrap(contents: Any) -> Any:
    """The dictionary inside a dictionary: under the first of the usual names or, as ComfyUI reads
    it, under a single name. Anything else unchanged."""
    if not isinstance(contents, dict):
        return contents
    names = [*WRAPPERS, *(contents if len(contents) == 1 else ())]
    inner = (contents.get(name) for name in names)
    plain = (value.by_name if isinstance(value, _Parameters) else value for value in inner)
    return next((value for value in plain if isinstance(value, dict)), contents)


def _state_dict(contents: Any) -> dict[Any, Any]:
    """The state dict, which trainers nest under names such as "state_dict", and textual inversion
    under "string_to_param". A tensor alone gets a name. Empty for anything else."""
    if isinstance(contents, Tensor):
        return {"tensor": contents}
    for _ in range(MAX_WRAPPERS):
        contents = _unwrap(contents)
    return contents if isinstance(contents, dict) else {}


def _joined(items: Sequence[Any]) -> dict[Any, Any]:
    """The state dicts of all items as one. The number of an item is added to repeated names."""
    joined: dict[Any, Any] = {}
    for number, item in enumerate(items, start=1):
        for key, value in _state_dict(item).items():
            joined[f"{key} ({number})" if key in joined else key] = value
    return joined


def _tensors_in(path: Path, contents: Any, noun: str) -> dict[str, Tensor]:
    is_list = isinstance(contents, list | tuple)
    tensors = {
        key: value
        for key, value in (_joined(contents) if is_list else _state_dict(contents)).items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    for key, tensor in tensors.items():
        if not _is_plain(tensor):
            raise ValueError(
                f"The weight '{key}' of '{shown_name(path)}' is sparse, quantized, nested or has "
                f"no data. Choose the fp32, fp16 or bf16 version of this {noun}."
            )
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    is_odd = tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu"
    return tensor.layout == torch.strided and not is_odd
