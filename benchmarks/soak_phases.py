"""The phases of a run, and killing the run's own process at one exact call inside a phase.

A phase begins when one of its functions is called, and lasts until another phase begins. What is
counted are the calls of functions in Python and in C, in the backward pass also the operations on
tensors. Training itself is the same, because nothing but the calls is looked at."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from trainer import loop
from trainer.evaluation.preview_scorer import PreviewScorer, _PreviewDrawer
from trainer.methods.new_words import TrainableEmbedding
from trainer.runs import opening
from trainer.runs.outputs import Outputs
from trainer.runs.recorder import Recorder
from trainer.runs.run import Run
from trainer.training import images
from trainer.training.anchor import Anchor
from trainer.training.captions import CaptionEncoder
from trainer.training.ema import EMA
from trainer.training.gradient_step import GatheredStep
from trainer.training.per_weight_step import PerWeightStep
from trainer.training.session import Session

PHASES: dict[str, list[tuple[Any, str]]] = {
    "hashing files": [(opening, "_find")],
    "opening the run's folder": [(Run, "open")],
    "loading the model": [(loop, "load_model")],
    "encoding photos and class images": [(images, "encode_examples")],
    "drawing class images": [(images, "make_class_images")],
    "setting up training": [(Session, "__init__")],
    "encoding captions": [(CaptionEncoder, "fill_cache")],
    "reading a state": [(Run, "begin")],
    "forward pass": [(Session, "_accumulate_gradients")],
    "backward pass": [(GatheredStep, "backward"), (PerWeightStep, "backward")],
    "clipping and optimizer": [
        (step, name)
        for step in (GatheredStep, PerWeightStep)
        for name in ("clip_gradients", "update_weights")
    ],
    "anchor, average, clamping, losses": [
        (Anchor, "pull"), (EMA, "update"), (TrainableEmbedding, "clamp_lengths"),
        (Recorder, "on_step"),
    ],
    "previews": [(Session, "draw"), (Recorder, "on_preview")],
    "scoring": [(PreviewScorer, "_score"), (_PreviewDrawer, "embed")],
    "best step's copy": [(Outputs, "save_best")],
    "intermediate save": [(Outputs, "save_step")],
    "state": [(Run, "save_state")],
    "writing the result": [(loop, "_write_result")],
    "publishing the best step": [(Outputs, "publish_best")],
    "finishing": [(Run, "finish")],
}  # fmt: skip
"""In the order of a run: the functions that begin each phase, by their owners and names."""
REPEATED = list(PHASES)[list(PHASES).index("forward pass") : list(PHASES).index("state") + 1]
"""The phases that come again with later steps."""
CHANGES_FILES = {"open", "write", "flush", "fsync", "close", "truncate", "link", "mkdir", "remove",
                 "rename", "replace", "rmdir", "unlink"}  # fmt: skip


@dataclass
class Counts:
    """The calls in a phase of a run."""

    calls: int = 0
    file_operations: int = 0
    """Those that change files."""


@dataclass(frozen=True)
class Moment:
    """A call in a phase."""

    phase: str
    number: int
    """Counted from 1 over all calls of this kind in the phase."""
    is_file_operation: bool
    """Whether only calls that change files count."""


class Watch:
    """Counts the calls in each phase of this process's run, or kills the process at one of them."""

    def __init__(self, moment: Moment | None = None) -> None:
        """`moment`: when to kill; None: never."""
        self._moment = moment
        self.counts = {phase: Counts() for phase in PHASES}
        self._phase, self._depth = "", 0

    def begin(self) -> None:
        """Replace the functions that begin phases by ones that say so. Call it once, in a process
        of its own."""
        for phase, places in PHASES.items():
            for owner, name in places:
                setattr(owner, name, self._announcing(phase, getattr(owner, name)))

    def end(self) -> None:
        sys.setprofile(None)

    def _announcing(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            outer = self._phase if self._depth else ""
            self._enter(phase)
            self._depth += 1
            try:
                if phase == "backward pass" and self._is_watched(phase):
                    with _EachOperation():  # type: ignore[no-untyped-call]
                        return function(*args, **kwargs)
                return function(*args, **kwargs)
            finally:
                self._depth -= 1
                if outer:
                    self._enter(outer)

        return run

    def _is_watched(self, phase: str) -> bool:
        return self._moment is None or self._moment.phase == phase

    def _enter(self, phase: str) -> None:
        self._phase = phase
        sys.setprofile(self._on_event if self._is_watched(phase) else None)

    def _on_event(self, frame: FrameType, event: str, called: Any) -> None:
        if event not in ("call", "c_call"):
            return
        counts, is_file_operation = self.counts[self._phase], _changes_files(event, called)
        counts.calls += 1
        counts.file_operations += is_file_operation
        if self._moment:
            in_files = self._moment.is_file_operation
            made = counts.file_operations if in_files else counts.calls
            if made == self._moment.number and is_file_operation >= in_files:
                os.kill(os.getpid(), signal.SIGKILL)


class _EachOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Makes each operation on tensors inside call a function in Python, also in a backward pass."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*args, **(kwargs or {}))


def _changes_files(event: str, called: Any) -> bool:
    if event != "c_call" or called.__name__ not in CHANGES_FILES:
        return False
    owner = called.__self__
    return isinstance(owner, io.IOBase) or owner in (sys.modules["posix"], sys.modules["_io"])
