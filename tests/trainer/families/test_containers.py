"""Damaged, inconsistent and malicious files. Each is refused with a reason, runs no code and uses
no memory."""

import importlib
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from trainer.families.files import CheckpointFile

TENSORS = {
    "fp32": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "fp16": torch.tensor([1 / 3, -2.0], dtype=torch.float16),
}


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    return path


def refusal(path: Path, key: str = "") -> str:
    """The error message from opening the file, or from reading this tensor of it."""
    file = CheckpointFile(path) if key else None
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        file.tensor(key) if file else CheckpointFile(path)
    return str(error.value)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def saved(path: Path, contents: object, *, as_zip: bool = True) -> bytes:
    torch.save(contents, path, _use_new_zipfile_serialization=as_zip)
    return path.read_bytes()


def with_header(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object, shape: list[Any], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


# -------------------------------------------------------------- .safetensors


@pytest.mark.parametrize("size", [0, 5, 9, 100, *(2**power for power in range(18)), -3])
def test_a_file_cut_at_any_length_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({f"weight {number}": torch.zeros(999) for number in range(64)}, path)
    content = path.read_bytes()
    header_end = 8 + struct.unpack("<Q", content[:8])[0]
    left = len(content[:size])
    assert 2**12 < header_end < 2**13 < 2**17 < len(content)
    numbers = f", {left} of {len(content)} bytes" if left >= header_end else ""
    assert refusal(write(path, content[:size])) == (
        f"'model.safetensors' is cut short{numbers}: the download or copy did not finish. "
        "Download it again."
    )


@pytest.mark.parametrize("length", [2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_huge_header_length_is_refused(safetensors: Path, length: int) -> None:
    content = safetensors.read_bytes()
    assert refusal(write(safetensors, struct.pack("<Q", length) + content[8:])) == (
        "'model.safetensors' is not a readable .safetensors file (its header would have more than "
        "10000000 bytes). Download it again, or choose another."
    )


@pytest.mark.parametrize("wrong_by", [-90, 8])
def test_a_header_length_that_is_a_little_wrong_is_refused(
    safetensors: Path, wrong_by: int
) -> None:
    content = safetensors.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert refusal(write(safetensors, struct.pack("<Q", length + wrong_by) + content[8:])) == (
        "'model.safetensors' is not a readable .safetensors file (its header is damaged). "
        "Download it again, or choose another."
    )


@pytest.mark.parametrize("content", [b"\x93" * 300, b"PK\x03\x04" + bytes(300), bytes(300)])
def test_a_file_without_a_header_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(write(tmp_path / "model.safetensors", content)) == (
        "'model.safetensors' is not a readable .safetensors file (it has no header). "
        "Download it again, or choose another."
    )


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("<Q", 4) + b"{{{{",
        with_header({"a": {"dtype": "F32"}}),
        with_header({"a": 5}),
        with_header({"a": entry("F32", [1], 0, 4) | {"data_offsets": []}}),
        with_header({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
        with_header({"a": entry("F32", [1], -4, 4)}, bytes(4)),
        with_header({"a": entry("F32", [2**64], 0, 4)}, bytes(4)),
        with_header({"a": entry("F32", [1.0], 0, 4)}, bytes(4)),
        with_header({"a": entry("F32", [True], 0, 4)}, bytes(4)),
        with_header({"a": entry(None, [1], 0, 4)}, bytes(4)),
        with_header({"a": entry("F32", [1], 0, 4) | {"data_offsets": [0, 1e400]}}, bytes(4)),
        struct.pack("<Q", 20_000) + b'{"a":' + b"[" * 19_995,
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, content: bytes) -> None:
    assert refusal(write(tmp_path / "model.safetensors", content)) == (
        "'model.safetensors' is not a readable .safetensors file (its header is damaged). "
        "Download it again, or choose another."
    )


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry("F32", [100], 0, 16)},
        {"a": entry("F16", [4], 0, 16)},
        {"a": entry("I64", [4], 0, 16)},
        {"a": entry("F32", [4], 16, 0)},
        {"a": entry("F32", [3], 0, 12), "b": entry("F32", [2], 8, 16)},
        {"a": entry("F32", [4], 0, 16), "b": entry("F32", [4], 0, 16)},
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [2], 8, 16)},
        {"a": entry("F32", [2], 8, 16)},
        {"a": entry("F32", [2**32, 2**31], 0, 16)},
        {"a": entry("F32", [4], 0, 16), "__metadata__": {"a": 1}},
    ],
    ids=["larger", "fp16", "int64", "backwards", "overlapping", "the same", "with a gap",
         "not from 0", "overflowing", "metadata"],
)  # fmt: skip
def test_an_inconsistent_header_is_refused(tmp_path: Path, header: object) -> None:
    message = refusal(write(tmp_path / "model.safetensors", with_header(header, bytes(16))))
    # In between is the safetensors library's own message, which changes between its releases.
    assert message.startswith("'model.safetensors' is not a readable .safetensors file (")
    assert message.endswith("). Download it again, or choose another.")


def test_an_empty_tensor_with_a_huge_shape_is_refused(tmp_path: Path) -> None:
    header = {"a": entry("F32", [2**62, 0], 0, 0), "b": entry("F32", [1], 0, 4)}
    path = write(tmp_path / "model.safetensors", with_header(header, bytes(4)))
    assert refusal(path, "a") == (
        f"The weight 'a' of 'model.safetensors' has the shape [{2**62}, 0], which is more than the "
        "whole file holds. The file is damaged: download it again, or choose another."
    )


def test_an_unknown_number_format_is_refused(tmp_path: Path) -> None:
    header = {"a": entry("U64", [1], 0, 8)}
    assert refusal(write(tmp_path / "model.safetensors", with_header(header, bytes(8)))) == (
        "The weight 'a' of 'model.safetensors' has the number format U64, but only I64, F64, F32, "
        "I32, BF16, F16, I16, F8_E4M3, F8_E5M2, I8, U8, BOOL can be read. Choose the fp32, fp16 or "
        "bf16 version of this checkpoint."
    )


# --------------------------------------------------------- malicious pickles


class Calls:
    """Pickles as a function call that runs when the pickle is opened."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call

    def __call__(self) -> None: ...  # pickle requires that it is callable


class Sets:
    """Pickles as an object of an allowed type whose state is a call."""

    def __init__(self, state: Calls) -> None:
        self.state = state

    def __reduce__(self) -> tuple[object, ...]:
        return OrderedDict, (), self.state


MALICE: dict[str, Callable[[Path], object]] = {
    "a shell": lambda trace: Calls(os.system, f"echo > {trace}"),
    "a process": lambda trace: Calls(
        subprocess.call, [sys.executable, "-c", f"open({str(trace)!r}, 'w')"]
    ),
    "eval": lambda trace: Calls(eval, f"open({str(trace)!r}, 'w')"),
    "exec": lambda trace: Calls(exec, f"open({str(trace)!r}, 'w')"),
    "a method": lambda trace: Calls(Path.touch, trace),
    "an attribute": lambda trace: Calls(getattr, Path, "touch"),
    "an import": lambda trace: Calls(importlib.import_module, "antigravity"),
    "a call in a call": lambda trace: Calls(Calls(getattr, Path, "touch"), trace),
    "a call in what is allowed": lambda trace: Calls(OrderedDict, [Calls(os.system, str(trace))]),
    "a call in a state": lambda trace: Sets(Calls(os.system, f"echo > {trace}")),
    "a call in a name": lambda trace: {Calls(os.system, f"echo > {trace}"): 1},
}


@pytest.mark.parametrize("malice", MALICE)
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_nested", [True, False])
@pytest.mark.parametrize("ending", [".ckpt", ".pt"])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(
    tmp_path: Path, malice: str, is_zip: bool, is_nested: bool, ending: str
) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"model{ending}"
    contents: dict[str, object] = {**TENSORS, "extra": MALICE[malice](trace)}
    contents = {"state_dict": contents} if is_nested else contents
    torch.save(contents, path, _use_new_zipfile_serialization=is_zip)
    assert refusal(path) == (
        f"'{path.name}' holds more than numbers: opening it would run code from the file, which "
        "could do anything on this computer. Choose the .safetensors version of this checkpoint."
    )
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".safetensors"])
def test_a_bare_malicious_pickle_is_refused_and_runs_nothing(
    tmp_path: Path, ending: str, protocol: int
) -> None:
    trace, path = tmp_path / "trace", tmp_path / f"model{ending}"
    payload = pickle.dumps(Calls(os.system, f"echo > {trace}"), protocol)
    message = refusal(write(path, payload))
    assert message.startswith(
        (f"'{path.name}' holds more than", f"'{path.name}' is not a readable")
    )
    assert not trace.exists()
    pickle.loads(payload)
    assert trace.exists()  # pickle itself does run it


# ------------------------------------------- damaged and inconsistent pickles


@pytest.mark.parametrize("size", [2**power for power in range(18)])
def test_a_ckpt_cut_at_any_length_is_refused(tmp_path: Path, size: int) -> None:
    whole = saved(tmp_path / "model.ckpt", {"a": torch.zeros(40_000)})
    assert len(whole) > 2**17
    assert refusal(write(tmp_path / "model.ckpt", whole[:size])) == (
        "'model.ckpt' is cut short: the download or copy did not finish. Download it again."
    )


@pytest.mark.parametrize("size", [2**power for power in range(18)])
def test_an_old_ckpt_cut_at_any_length_is_refused(tmp_path: Path, size: int) -> None:
    whole = saved(tmp_path / "model.ckpt", {"a": torch.zeros(40_000)}, as_zip=False)
    assert len(whole) > 2**17
    message = refusal(write(tmp_path / "model.ckpt", whole[:size]))
    assert message.startswith("'model.ckpt' is not a readable .ckpt file (")
    assert message.endswith("). Download it again, or choose another.")


def test_a_compressed_ckpt_is_refused_without_decompressing_it(tmp_path: Path) -> None:
    saved(tmp_path / "model.ckpt", TENSORS)
    with zipfile.ZipFile(tmp_path / "model.ckpt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content + bytes(50_000_000) * name.endswith("data.pkl"))
    assert (tmp_path / "bomb.ckpt").stat().st_size < 60_000
    assert refusal(tmp_path / "bomb.ckpt") == (
        "'bomb.ckpt' is not a readable .ckpt file (it has been compressed). Download it again, or "
        "choose another."
    )


def test_a_pickle_of_an_unknown_kind_is_not_called_malicious(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "model.ckpt", pickle_protocol=4)
    assert refusal(tmp_path / "model.ckpt") == (
        "'model.ckpt' is not a readable .ckpt file (its contents are damaged or of an unknown "
        "kind). Download it again, or choose another."
    )


def test_a_tensor_expanded_beyond_the_file_size_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "model.ckpt", {"a": torch.ones(1).expand(10**6, 10**6)})
    assert refusal(tmp_path / "model.ckpt", "a") == (
        "The weight 'a' of 'model.ckpt' has the shape [1000000, 1000000], which is more than the "
        "whole file holds. The file is damaged: download it again, or choose another."
    )


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(3, device="meta"), torch.eye(3).to_sparse()],
    ids=["meta", "sparse"],
)
def test_a_sparse_or_meta_tensor_is_named(tmp_path: Path, tensor: torch.Tensor) -> None:
    saved(tmp_path / "model.ckpt", {"a": tensor})
    assert refusal(tmp_path / "model.ckpt") == (
        "The weight 'a' of 'model.ckpt' is sparse, quantized, nested or has no data. Choose the "
        "fp32, fp16 or bf16 version of this checkpoint."
    )


def test_garbage_named_ckpt_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "model.ckpt", b"\x93" * 300)) == (
        "'model.ckpt' is not a readable .ckpt file (it has no header). "
        "Download it again, or choose another."
    )


# -------------------------------------------------------------------- fuzzing


@pytest.mark.posix
@pytest.mark.parametrize(
    ("kind", "count"),
    [
        ("checkpoint.safetensors", 10_000),
        ("checkpoint.ckpt", 2_000),
        ("checkpoint.old.ckpt", 2_000),
        ("embedding.safetensors", 10_000),
        ("embedding.pt", 2_000),
    ],
)
def test_thousands_of_damaged_files_open_or_are_refused(kind: str, count: int) -> None:
    """Each in at most a second of CPU time, and in about as much memory as the file has bytes."""
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": str(here.parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(here.with_name("fuzz.py")), kind, str(count)],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    outcomes = json.loads(done.stdout)
    assert outcomes["opened"] + outcomes["refused"] == count
    assert outcomes["opened"] >= count / 100
