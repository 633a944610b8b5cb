"""Damaged checkpoints by the thousand, each decided by its number, opened in a process of their
own: `PYTHONPATH=. python tests/trainer/families/fuzz.py safetensors 10000`.

Each opens and is read to its end, or gives ValueError. Any other exception, a file that takes
more than a second of the processor, and memory that the file does not hold end the process."""

from __future__ import annotations

import copy
import io
import json
import pickle
import random
import resource
import signal
import struct
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

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
"""Bytes that a process may grow by for reasons of its own."""


# -------------------------------------------------------------- .safetensors


class Pairs(list[tuple[str, Any]]):
    """A JSON object that may repeat a name."""


VALID = save(TENSORS, {"format": "pt"})
HEADER_END = 8 + struct.unpack("<Q", VALID[:8])[0]
HEADER, DATA = VALID[8:HEADER_END], VALID[HEADER_END:]


def damaged_safetensors(rng: random.Random) -> bytes:
    ways = [_with_other_bytes, _with_other_length, _cut, _with_other_text] + [
        _with_other_values
    ] * 6
    return rng.choice(ways)(rng)


def _with_other_bytes(rng: random.Random) -> bytes:
    return _flip(rng, VALID, rng.choice([8, HEADER_END, len(VALID)]))


def _with_other_length(rng: random.Random) -> bytes:
    near = [rng.randrange(2 * len(VALID)), len(HEADER) + rng.randint(-9, 9)]
    return _pack(HEADER, length=int(rng.choice([*NUMBERS, *near])) % 2**64)


def _cut(rng: random.Random) -> bytes:
    return VALID[: rng.randrange(len(VALID))]


def _with_other_text(rng: random.Random) -> bytes:
    text = HEADER.decode()
    start, end = sorted(rng.choices(range(len(text) + 1), k=2))
    new = rng.choice([*TOKENS, text[start:end] * 2])
    return _pack((text[:start] + new + text[end:]).encode())


def _with_other_values(rng: random.Random) -> bytes:
    root = json.loads(HEADER, object_pairs_hook=Pairs)
    for _ in range(rng.randint(1, 3)):
        _change_one(rng, root)
    header = _dumps(root).encode("utf-8", "surrogatepass")
    return _pack(header, rng.choice([DATA, DATA, DATA, DATA[:9], DATA * 3]))


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


def _pack(header: bytes, data: bytes = DATA, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _flip(rng: random.Random, content: bytes, end: int) -> bytes:
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        flipped[rng.randrange(end)] = rng.randrange(256)
    return bytes(flipped)


# --------------------------------------------------------------------- .ckpt


def saved(*, as_zip: bool) -> bytes:
    file = io.BytesIO()
    plain = {name: tensor for name, tensor in TENSORS.items() if tensor.numel()}
    torch.save({"state_dict": plain}, file, _use_new_zipfile_serialization=as_zip)
    return file.getvalue()


ZIPPED, OLD = saved(as_zip=True), saved(as_zip=False)
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


def damaged_ckpt(rng: random.Random) -> bytes:
    way = rng.randrange(4)
    if way == 0:
        return _flip(rng, OLD, len(OLD))
    if way == 1:
        return _flip(rng, ZIPPED, len(ZIPPED))
    if way == 2:
        whole = rng.choice([OLD, ZIPPED])
        return whole[: rng.randrange(len(whole))]
    return _with_other_pickle(rng)


def _with_other_pickle(rng: random.Random) -> bytes:
    """An archive that is whole and holds a damaged pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(ZIPPED)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("data.pkl"):
                place = rng.randrange(len(content))
                flipped = _flip(rng, content, len(content))
                inserted = content[:place] + rng.choice(PIECES) + content[place:]
                content = rng.choice([flipped, inserted])
            new.writestr(name, content)
    return file.getvalue()


# ---------------------------------------------------------------------------


def opens(path: Path) -> bool:
    """Whether it does, and can be read to its end."""
    try:
        file = CheckpointFile(path)
        tensors = {key: file.tensor(key) for key in file.shapes}
    except ValueError as error:
        _require_ours(str(error), path)
        return False
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == file.shapes
    assert {key: tensor.dtype for key, tensor in tensors.items()} == file.dtypes
    return True


def _require_ours(message: str, path: Path) -> None:
    """Not one that some library happens to give, which names no file and no way out."""
    assert message.startswith((f"'{path.name}' ", "The weight '")), message


def limit_memory() -> None:
    """From here on the process gets little more memory than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(kind: str, count: int, first: int = 0) -> None:
    damaged = {"safetensors": damaged_safetensors, "ckpt": damaged_ckpt}[kind]
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model.{kind}"
        path.write_bytes(VALID if kind == "safetensors" else ZIPPED)
        assert opens(path)
        if kind == "safetensors":  # torch asks for what a pickle claims, and then does not touch it
            limit_memory()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        outcomes = {True: 0, False: 0}
        for number in range(first, first + count):
            path.write_bytes(damaged(random.Random(number)))
            sys.stderr.write(f"{number}\n")
            signal.setitimer(signal.ITIMER_PROF, 1)
            outcomes[opens(path)] += 1
            signal.setitimer(signal.ITIMER_PROF, 0)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        assert grown < SPARE_MEMORY, grown
    sys.stdout.write(json.dumps({"opened": outcomes[True], "refused": outcomes[False]}) + "\n")


if __name__ == "__main__":
    sys.set_int_max_str_digits(4300)
    main(sys.argv[1], *map(int, sys.argv[2:]))
