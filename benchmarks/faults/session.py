"""One run of the command line in a process of its own, with or without a fault."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.__main__ import main

from . import preload
from .preload import Fault
from .scenarios import Place

FORK = multiprocessing.get_context("fork")
"""A forked process has already loaded torch, so that a run takes about a second."""
FINISHED = -1
"""In place of a step."""
TIME_LIMIT = 120.0
"""Seconds after which a run counts as hanging."""


@dataclass
class Ended:
    """How a run ended, and what it said."""

    code: int
    """The exit code; negative for a signal."""
    warnings: list[str] = field(default_factory=list)
    """Also errors, other than the last."""
    error: str = ""
    """The message with which it failed."""
    traceback: str = ""
    """Of an exception that the command line did not catch."""
    resumed: int = 0
    """The step after which it resumed; 0: it started at step 1. -1: it was finished already."""
    unraisable: list[str] = field(default_factory=list)
    """Exceptions in destructors and threads, which Python only prints."""


def run(place: Place, log: Path, fault: Fault | None = None, data: Path | None = None) -> Ended:
    """Run to the end, with this fault. `data`: as in `preload.watch`."""
    said = log.with_suffix(".said")
    said.unlink(missing_ok=True)
    process = FORK.Process(target=_work, args=(place, log, fault, data, said))
    process.start()
    process.join(TIME_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
    lines = [json.loads(line) for line in said.read_text().splitlines()] if said.exists() else []
    ended = Ended(process.exitcode or 0)
    texts: dict[str, list[str]] = {}
    for kind, text in lines:
        texts.setdefault(kind, []).append(text)
    errors = texts.get("ERROR", [])
    ended.warnings = [*texts.get("WARNING", []), *errors[:-1]]
    ended.error = errors[-1] if errors else ""
    ended.resumed = _resumed(texts.get("INFO", []))
    ended.traceback = "\n".join(texts.get("traceback", []))
    ended.unraisable = texts.get("unraisable", [])
    return ended


def _resumed(infos: Sequence[str]) -> int:
    if any(text.startswith("Reusing the finished run") for text in infos):
        return FINISHED
    steps = [re.findall(r"^Resuming after step (\d+)", text) for text in infos]
    return int(next((found[0] for found in steps if found), 0))


def _work(place: Place, log: Path, fault: Fault | None, data: Path | None, said: Path) -> None:
    file = said.open("w", buffering=1)

    def say(kind: str, text: str) -> None:
        file.write(json.dumps([kind, text]) + "\n")

    _record(say)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    preload.watch(place.roots, log, fault, data)
    try:
        code = main(place.arguments())
    except BaseException:
        say("traceback", traceback.format_exc())
        code = 70
    file.close()
    os._exit(code)


def _record(say: Any) -> None:
    """Pass on what is logged and what Python prints on its own."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            say(record.levelname, record.getMessage())

    root = logging.getLogger()
    root.handlers[:] = [Handler()]
    root.setLevel(logging.INFO)
    sys.unraisablehook = lambda args: say("unraisable", f"{args.exc_value!r} in {args.object!r}")
