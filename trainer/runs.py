"""The folder of one run: where the run stands, what came of it, and who works on it. What makes it
the same run is `identity.py`'s business."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from . import records, states
from .config import TrainingConfig
from .data.examples import Example, find_examples
from .identity import Hashes, define, identify
from .locks import locked
from .metadata import plain, versions
from .methods.base import Method
from .observer import Observer, StepReport
from .recorder import Recorder

if TYPE_CHECKING:
    from .session import Session

logger = logging.getLogger(__name__)

OnExisting = Literal["reuse", "resume", "retrain"]
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished run."""

    files: dict[str, Path]
    """What it wrote: a "checkpoint", an "embedding", or both."""
    steps: int
    """Optimizer steps made."""
    total_steps: int
    """Optimizer steps planned: more than were made, if the observer wanted to finish early."""
    reports: list[StepReport]
    moved: dict[str, tuple[float, float]]
    """By part of the model: the length of its weights' change over their own length, and the share
    of its weights that changed in the file."""
    previews: list[np.ndarray]
    """[H, W, 3] uint8, of the last step that had any."""
    reused: bool = False
    """It was finished before, and is only found again."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint; KeyError for a method that writes none."""
        return self.files["checkpoint"]

    @property
    def embedding(self) -> Path | None:
        """The learned embedding, if one was trained."""
        return self.files.get("embedding")


@contextmanager
def open_run(
    runs: Path,
    config: TrainingConfig,
    method: Method,
    photos: Sequence[Example],
    *,
    observer: Observer,
    on_existing: str,
) -> Iterator[Run]:
    """The run of this content, in a folder of its own in `runs`, for one process at a time. A run
    that ends early keeps a state to go on from.

    "reuse" takes what is there: a finished run's result, or the newest state. "resume" does too,
    but refuses to begin a run that is not there. "retrain" begins anew; finished checkpoints stay.
    ValueError for another word and for nothing to resume, RuntimeError if the run is being worked
    on already.
    """
    if on_existing not in get_args(OnExisting):
        words = ", ".join(get_args(OnExisting))
        raise ValueError(f"on_existing must be one of {words}, got {on_existing!r}.")
    hashes = Hashes(runs / "hashes.json")
    base_sha256 = hashes.sha256(config.base)
    embedding_sha256 = hashes.sha256(config.embedding) if config.embedding else ""
    class_images = _own_class_images(config)
    definition = define(config, method, base_sha256, embedding_sha256, photos, class_images)
    folder = runs / identify(definition)
    if on_existing == "resume" and not (folder / MANIFEST).exists():
        raise ValueError(_nothing_to_resume(runs, definition))
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if on_existing == "retrain":
            _clear(folder)
        run = Run(folder, config, hashes, definition, observer)
        try:
            yield run
        except BaseException:
            run.stop()
            raise


class Run:
    """A run's folder, while this process works on it."""

    def __init__(
        self,
        folder: Path,
        config: TrainingConfig,
        hashes: Hashes,
        definition: Mapping[str, Any],
        observer: Observer,
    ) -> None:
        self.folder = folder
        self._hashes = hashes
        self._session: Session | None = None
        self._saved_step = 0
        self._has_told_size = False
        self._manifest = records.read(folder / MANIFEST)
        if not self._manifest:
            self._note({
                "identity": folder.name,
                "status": "unfinished",
                "started": _now(),
                "config": plain(config),
                "definition": dict(definition),
                "versions": versions(),
                "intermediate": [],
            })  # fmt: skip
        self.recorder = Recorder(folder, observer)

    @property
    def started(self) -> datetime:
        return datetime.fromisoformat(self._manifest["started"])

    @property
    def intermediate(self) -> list[Path]:
        """Intermediate checkpoints of earlier sessions, the oldest first."""
        return [Path(path) for path in self._manifest["intermediate"]]

    def result(self) -> TrainingResult | None:
        """What an earlier session finished, if its files still are those it wrote."""
        if self._manifest["status"] != "finished":
            return None
        made = self._manifest["result"]
        for file in made["files"].values():
            if not self._is_still(Path(file["path"]), file["sha256"]):
                logger.warning("This run was finished, but its file '%s' is gone or another. "
                               "It is trained again.", file["path"])  # fmt: skip
                self._note({"status": "unfinished", "started": _now(), "result": None})
                return None
        files = {kind: Path(file["path"]) for kind, file in made["files"].items()}
        logger.info("This run was finished before, after step %d of %d: %s", made["steps"],
                    made["total_steps"], ", ".join(map(str, files.values())))  # fmt: skip
        moved = {part: (distance, share) for part, (distance, share) in made["moved"].items()}
        return TrainingResult(
            files, made["steps"], made["total_steps"], self.recorder.reports(), moved,
            self.recorder.previews(), reused=True,
        )  # fmt: skip

    def begin(self, session: Session) -> None:
        """Bring a new session to where the run stands, and stand by it from now on."""
        state = states.load_newest(self._states, mmap=session.model.device.type != "cpu")
        if state:
            session.load_state(state)
            logger.info("Going on after step %d.", len(session.reports))
        self._session, self._saved_step = session, len(session.reports)
        # What came after the state is made again, and must not be listed twice.
        self.recorder.rewrite(session.reports)

    def save_state(self) -> None:
        """Keep a state of the session. A disk that is full costs no more than this state."""
        assert self._session, "begin comes first"
        step = len(self._session.reports)
        with records.surviving("the state of this step"):
            path = states.save(self._states, step, self._session.state())
            self._saved_step = step
            self._note({"intermediate": self._all_intermediate()})
            if not self._has_told_size:
                megabytes = path.stat().st_size / 1e6
                logger.info("The state for resuming takes %.1f MB.", megabytes)
                self._has_told_size = True

    def stop(self) -> None:
        """The session has ended early: keep a state of it."""
        if self._session is None or not self._session.reports:
            return
        last = len(self._session.reports)
        if self._session.is_whole and self._saved_step < last:
            self.save_state()
        where = "there" if self._saved_step == last else f"step {self._saved_step}"
        logger.warning("Stopped after step %d. Run the same again to go on from %s.", last, where)

    def finish(self, files: Mapping[str, Path], moved: Mapping[str, tuple[float, float]]) -> None:
        """The session has come to its end: keep what it made, and no states any more."""
        assert self._session, "begin comes first"
        self.recorder.rewrite(self._session.reports)
        written = {
            kind: {"path": str(path.resolve()), "sha256": self._hashes.sha256(path)}
            for kind, path in files.items()
        }
        steps = {"steps": len(self._session.reports), "total_steps": self._session.config.steps}
        made = {**steps, "files": written, "moved": dict(moved)}
        self._note({"status": "finished", "result": made})
        self._session = None
        states.remove_all(self._states)

    @property
    def _states(self) -> Path:
        return self.folder / "states"

    def _all_intermediate(self) -> list[str]:
        paths = [*self.intermediate, *self.recorder.checkpoints]
        return [str(path) for path in dict.fromkeys(paths) if path.exists()]

    def _note(self, facts: Mapping[str, Any]) -> None:
        self._manifest.update(facts)
        records.write(self.folder / MANIFEST, self._manifest)

    def _is_still(self, checkpoint: Path, sha256: str) -> bool:
        try:
            return self._hashes.sha256(checkpoint) == sha256
        except (OSError, ValueError):
            return False


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _clear(folder: Path) -> None:
    """Forget all of a run, but for its checkpoints, which lie elsewhere."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "lock":
            path.unlink()


def _own_class_images(config: TrainingConfig) -> list[Example]:
    prior = config.prior
    if prior.weight == 0 or not prior.images:
        return []
    return find_examples(prior.images, prior.prompt, is_prior=True)


def _nothing_to_resume(runs: Path, definition: Mapping[str, Any]) -> str:
    message = f"No run of these settings and images is in {runs}, so there is none to go on with."
    manifests = sorted(runs.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime)
    if manifests:
        last = records.read(manifests[-1]).get("definition", {})
        names = [
            name for name in sorted({*last, *definition}) if last.get(name) != definition.get(name)
        ]
        message += f" The last one there differs in: {', '.join(names)}."
    return message + " Set on_existing to reuse to begin one."
