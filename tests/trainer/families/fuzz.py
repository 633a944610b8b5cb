"""Opens thousands of damaged files in a separate process:
`PYTHONPATH=. python tests/trainer/families/fuzz.py KIND 10000`, with KIND one of `KINDS`. The
number of a file decides its damage.

Each file must be read completely or raise ValueError. The process ends at any other exception, at a
file that takes more than a second of CPU time, and if it uses more memory than the files hold."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from trainer.families.embedding import PLACEHOLDER_KEY, Embedding
from trainer.families.files import CheckpointFile

TENSORS = {
    "fp32": torch.arange(6.0).view(2, 3),
    "fp16": torch.ones(4, dtype=torch.float16),
    "bf16": torch.ones(1, 1, dtype=torch.bfloat16),
    "int64": torch.arange(3),
    "empty": torch.zeros(0, 4),
}
NUMBERS = [0, 1, -1, 7, 255, 2**31, 2**32, 2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 2**64,
           10**4000, -(2**63), 0.5, 1e308]  # fmt: skip
TEXTS = ["", "\0", "a" * 9999, "é", "한국어", "🦊", "\ud800", "\u202e", "\n", "\\", '"', "../x",
         "__metadata__", "fp32", "dtype", "shape", "data_offsets", "F32", "F64", "BOOL", "F8_E4M3",
         "F4", "U64", "C64", "f32"]  # fmt: skip
OTHERS = [None, True, [], [[]], [0, 4], [2**62, 0], [2**62, 2**62, 0], {}, {"a": 1}, float("inf")]
TOKENS = ["{", "}", "[", "]", ",", ":", '"', "\\", "\0", "1e999", "-", " " * 99, "9" * 5000,
          '{"a":' * 999, "[" * 4999]  # fmt: skip
SPARE_MEMORY = 64 * 2**20
"""Bytes that the process may grow by for other reasons."""


# -------------------------------------------------------------- .safetensors


class Pairs(list[tuple[str, Any]]):
    """A JSON object that may contain a name several times."""


@dataclass(frozen=True)
class Whole:
    """An undamaged file."""

    content: bytes

    @property
    def header_end(self) -> int:
        return 8 + int(struct.unpack("<Q", self.content[:8])[0])

    @property
    def header(self) -> bytes:
        return self.content[8 : self.header_end]

    @property
    def data(self) -> bytes:
        return self.content[self.header_end :]


def damaged_safetensors(rng: random.Random, content: bytes) -> bytes:
    ways = [_with_other_bytes, _with_other_length, _with_other_text] + [_with_other_values] * 6
    return rng.choice([*ways, _cut])(rng, Whole(content))


def _with_other_bytes(rng: random.Random, whole: Whole) -> bytes:
    return _flip(rng, whole.content, rng.choice([8, whole.header_end, len(whole.content)]))


def _with_other_length(rng: random.Random, whole: Whole) -> bytes:
    near = [rng.randrange(2 * len(whole.content)), len(whole.header) + rng.randint(-9, 9)]
    length = int(rng.choice([*NUMBERS, *near])) % 2**64
    return struct.pack("<Q", length) + whole.content[8:]


def _cut(rng: random.Random, whole: Whole) -> bytes:
    return whole.content[: rng.randrange(len(whole.content))]


def _with_other_text(rng: random.Random, whole: Whole) -> bytes:
    text = whole.header.decode()
    start, end = sorted(rng.choices(range(len(text) + 1), k=2))
    new = rng.choice([*TOKENS, text[start:end] * 2])
    return _pack((text[:start] + new + text[end:]).encode(), whole.data)


def _with_other_values(rng: random.Random, whole: Whole) -> bytes:
    root = json.loads(whole.header, object_pairs_hook=Pairs)
    for _ in range(rng.randint(1, 3)):
        _change_one(rng, root)
    header = _dumps(root).encode("utf-8", "surrogatepass")
    return _pack(header, rng.choice([whole.data] * 3 + [whole.data[:9], whole.data * 3]))


def _change_one(rng: random.Random, root: Any) -> None:
    parent, index, node = root, 0, root
    while isinstance(node, list) and node and (node is root or rng.random() < 0.85):
        parent, index = node, rng.randrange(len(node))
        node = node[index][1] if isinstance(node, Pairs) else node[index]
    if node is root:
        return
    way = rng.randrange(8)
    if way == 0:
        del parent[index]
    elif way == 1:
        parent.append(copy.deepcopy(parent[index]))
    elif way == 2 and isinstance(parent, Pairs):
        parent[index] = (rng.choice(TEXTS), node)
    else:
        kinds = [NUMBERS, TEXTS, OTHERS, range(60), range(60)]
        new = copy.deepcopy(rng.choice(rng.choice(kinds)))
        parent[index] = (parent[index][0], new) if isinstance(parent, Pairs) else new


def _dumps(node: Any) -> str:
    if isinstance(node, Pairs):
        return "{" + ",".join(f"{_dumps(name)}:{_dumps(value)}" for name, value in node) + "}"
    if isinstance(node, list):
        return "[" + ",".join(map(_dumps, node)) + "]"
    return json.dumps(node, ensure_ascii=False)


def _pack(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _flip(rng: random.Random, content: bytes, end: int) -> bytes:
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(end)] = rng.randrange(256)
    return bytes(flipped)


# --------------------------------------------------------------------- .ckpt


PIECES = [
    bytes([number])
    for opcode in (
        pickle.REDUCE,
        pickle.BUILD,
        pickle.NEWOBJ,
        pickle.STOP,
        pickle.MARK,
        pickle.TUPLE,
        pickle.BINPERSID,
        pickle.SETITEMS,
    )
    for number in opcode
]
PIECES += [b"X\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\xffabc", b"cos\nsystem\n",
           b"cbuiltins\nbytearray\n", b"ctorch\nTensor\n", b"r\xff\xff\xff\xff", b"N."]  # fmt: skip


def saved(contents: object) -> bytes:
    file = io.BytesIO()
    torch.save(contents, file)
    return file.getvalue()


def saved_as_before(contents: object) -> bytes:
    """In torch's format before 1.6."""
    file = io.BytesIO()
    torch.save(contents, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def damaged_pickle(rng: random.Random, content: bytes) -> bytes:
    ways = ["flip", "cut"] + ["pickle"] * 2 * zipfile.is_zipfile(io.BytesIO(content))
    way = rng.choice(ways)
    if way == "flip":
        return _flip(rng, content, len(content))
    if way == "cut":
        return content[: rng.randrange(len(content))]
    return _with_other_pickle(rng, content)


def _with_other_pickle(rng: random.Random, content: bytes) -> bytes:
    """An undamaged archive that contains a damaged pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            part = old.read(name)
            if name.endswith("data.pkl"):
                place = rng.randrange(len(part))
                flipped = _flip(rng, part, len(part))
                part = rng.choice([flipped, part[:place] + rng.choice(PIECES) + part[place:]])
            new.writestr(name, part)
    return file.getvalue()


# ---------------------------------------------------------------------------


def read_checkpoint(path: Path) -> None:
    file = CheckpointFile(path)
    tensors = {key: file.tensor(key) for key in file.shapes}
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == file.shapes
    assert {key: tensor.dtype for key, tensor in tensors.items()} == file.dtypes


def read_embedding(path: Path) -> None:
    embedding = Embedding.read(path)
    assert embedding.vectors
    for vectors in embedding.vectors.values():
        assert vectors.ndim == 2
        assert len(vectors) > 0
        assert vectors.isfinite().all()


def opens(path: Path, read: Callable[[Path], None]) -> bool:
    """Whether the file can be opened and read completely."""
    try:
        read(path)
    except ValueError as error:
        _require_our_message(str(error), path)
        return False
    return True


def _require_our_message(message: str, path: Path) -> None:
    """Assert that the message is not a library's own, which would not say what to do."""
    assert re.search(r"(Choose|choose|Download|download|Use) ", message), message
    assert "placeholder" in message or f"'{path.name}'" in message, message


def limit_memory() -> None:
    """Limit the process to little more memory than it uses now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


VECTORS = {"clip_l": torch.ones(2, 4), "clip_g": torch.ones(2, 6, dtype=torch.float16)}
LEARNED = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 4)}, "step": 5}
STATE = {"state_dict": {name: tensor for name, tensor in TENSORS.items() if tensor.numel()}}
Kind = tuple[str, bytes, Callable[[random.Random, bytes], bytes], Callable[[Path], None]]
KINDS: dict[str, Kind] = {
    "checkpoint.safetensors": (
        ".safetensors", save(TENSORS, {"format": "pt"}), damaged_safetensors, read_checkpoint,
    ),
    "checkpoint.ckpt": (".ckpt", saved(STATE), damaged_pickle, read_checkpoint),
    "checkpoint.old.ckpt": (".ckpt", saved_as_before(STATE), damaged_pickle, read_checkpoint),
    "embedding.safetensors": (
        ".safetensors", save(VECTORS, {PLACEHOLDER_KEY: "<a-dog>"}), damaged_safetensors,
        read_embedding,
    ),
    "embedding.pt": (".pt", saved(LEARNED), damaged_pickle, read_embedding),
}  # fmt: skip
"""Extension, content of an undamaged file, function that damages it, function that reads it."""


def main(kind: str, count: int, first: int = 0) -> None:
    ending, whole, damaged, read = KINDS[kind]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a-file{ending}"
        path.write_bytes(whole)
        assert opens(path, read)
        if ending == ".safetensors":  # torch allocates what a pickle claims, without using it
            limit_memory()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = {True: 0, False: 0}
        for number in range(first, first + count):
            path.write_bytes(damaged(random.Random(number), whole))
            sys.stderr.write(f"{number}\n")
            signal.setitimer(signal.ITIMER_PROF, 1)
            outcomes[opens(path, read)] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < SPARE_MEMORY, grown
    sys.stdout.write(json.dumps({"opened": outcomes[True], "refused": outcomes[False]}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
