"""The library of `preload.c`: building it, starting a program with it, and what it logs."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("preload.c")
LIBRARY = "FAULTS_LIBRARY"
"""The environment variable with the path of the built library."""


class Effect(IntEnum):
    """What happens to one file operation."""

    NOTHING = 0
    FAIL = 1
    FULL_FROM_HERE = 2
    """It and all later operations that take space on the disk find no more of it."""
    SHORT = 3
    """Fewer bytes are read or written than asked for, which systems may do at any time."""
    CUT = 4
    """The file seems to end in the middle of the bytes that are read."""
    FLIP = 5
    """One bit of what is read is wrong."""
    KILL = 6
    """The process is killed."""


@dataclass(frozen=True)
class Fault:
    """What happens to the operation of this number, which counts from 1."""

    number: int
    effect: Effect
    error: int = errno.EIO
    """For `FAIL`."""


@dataclass(frozen=True)
class Operation:
    """A line of the log."""

    number: int
    call: str
    """Such as "write". "create" opens a file for writing, "open" for reading."""
    file: int
    """The descriptor; -1 without one."""
    where: int
    """The offset of a write, the length for ftruncate, or the flags for opening."""
    result: int
    """-1 if it failed. The number of bytes of a read or write."""
    path: str
    other: str
    """The new path of a link or rename."""


def rerun(module: str, arguments: Sequence[str]) -> int:
    """Run a module in a process with the library. Return its exit code. Raises RuntimeError without
    Linux or a C compiler."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("This needs Linux, whose file operations a library can intercept.")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        library = Path(folder) / "preload.so"
        command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"]
        try:
            subprocess.run(command, check=True)
        except FileNotFoundError:
            raise RuntimeError("This needs a C compiler (cc), such as gcc.") from None
        variables = {"LD_PRELOAD": str(library), LIBRARY: str(library), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments], env={**os.environ, **variables}
        )
    return done.returncode


def is_loaded() -> bool:
    return LIBRARY in os.environ


def watch(
    roots: Sequence[Path], log: Path, fault: Fault | None = None, data: Path | None = None
) -> None:
    """Log the operations of this process on what is below the roots from now on, and let one fail.
    `data`: a file to which all bytes are copied that are written."""
    library = ctypes.CDLL(os.environ[LIBRARY])
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    library.watch(
        "\n".join(map(str, roots)).encode(),
        os.open(log, flags),
        os.open(data, flags) if data else -1,
        ctypes.c_long(fault.number if fault else 0),
        int(fault.effect if fault else Effect.NOTHING),
        fault.error if fault else 0,
    )


def operations(log: Path) -> list[Operation]:
    """What was logged, in order."""
    found = []
    for line in log.read_text("utf-8", errors="surrogateescape").splitlines():
        number, call, file, where, result, path, other = line.split("\t")
        numbers = int(number), call, int(file), int(where), int(result)
        found.append(Operation(*numbers, without_process(path), without_process(other)))
    return found


def without_process(path: str) -> str:
    """A path without the process's number, which temporary files have in their names."""
    return re.sub(r"\.\d+\.part", ".PID.part", path)
