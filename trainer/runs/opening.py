"""Finds the run of given settings and images in a folder of runs, and opens it. `identity.py`
decides which runs are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import get_args

from .. import families
from ..data.examples import Example
from ..methods.base import Method
from ..observer import Observer
from ..settings.config import TrainingConfig
from ..storage.flush import make_folder
from ..storage.locks import locked
from ..training.images import own_class_images
from .identity import Definition, Hashes, define, named_files
from .manifest import Manifest, read
from .related_runs import RelatedRuns
from .run import OnExisting, Run
from .untracked_run import UntrackedRun


@contextmanager
def open_run(
    runs: Path | None,
    config: TrainingConfig,
    method: Method,
    photos: Sequence[Example],
    *,
    observer: Observer,
    on_existing: str,
) -> Iterator[Run | UntrackedRun]:
    """The run of these settings and images, in its own folder in `runs`, locked for this process.
    If it ends early, a state is saved from which it can be resumed. Without `runs` nothing is
    found, resumed or recorded.

    on_existing "reuse" returns the result of a finished run and resumes an unfinished one from its
    newest state, which may be that of a run with another number of steps. "resume" does the same,
    but also resumes a run that was finished early, and refuses to start a new one. "retrain" starts
    over; finished checkpoints are kept.

    Raises ValueError if `on_existing` is unknown or there is nothing to resume, RuntimeError if
    another process is working on the run.
    """
    if on_existing not in get_args(OnExisting):
        words = ", ".join(get_args(OnExisting))
        raise ValueError(f"on_existing must be one of {words}, got {on_existing!r}.")
    if runs is None:
        yield UntrackedRun(observer)
        return
    run = _find(runs, config, method, photos, observer)
    if on_existing == "resume":
        run.require_started()
    make_folder(run.folder)
    with locked(run.folder):
        run.open(on_existing)
        run.observer.on_run(run.folder)
        try:
            yield run
        except BaseException as error:
            # Weights that led to NaN are not worth resuming from: the previous state stays.
            run.stop(save=not isinstance(error, FloatingPointError))
            raise


def _find(
    runs: Path,
    config: TrainingConfig,
    method: Method,
    photos: Sequence[Example],
    observer: Observer,
) -> Run:
    hashes = Hashes(runs / "hashes.json")
    definition = _define(hashes, config, method, photos)
    related = RelatedRuns(runs, definition, config)
    manifest = Manifest(related.own_folder(), config, definition)
    return Run(related, config, method, manifest, hashes=hashes, observer=observer)


def statuses(
    runs: Path | None, config: TrainingConfig, method: Method, photos: Sequence[Example]
) -> Callable[[TrainingConfig], str]:
    """A function that returns the status of the run with other settings on the same files:
    UNFINISHED, FINISHED, or "" if there is none in `runs`."""
    if runs is None:
        return lambda other: ""

    @cache
    def definition() -> Definition:  # reads all images, which is in vain if nothing is asked
        return _define(Hashes(runs / "hashes.json"), config, method, photos)

    def status(other: TrainingConfig) -> str:
        changed = definition().with_settings(_with_default_clip_skip(other), method)
        folder = RelatedRuns(runs, changed, other).own_folder()
        return str(read(folder).get("status", ""))

    return status


def _define(
    hashes: Hashes, config: TrainingConfig, method: Method, photos: Sequence[Example]
) -> Definition:
    return define(
        _with_default_clip_skip(config),
        method,
        base_sha256=hashes.sha256(config.base),
        embedding_sha256=hashes.sha256(config.embedding) if config.embedding else "",
        photos=photos,
        class_images=own_class_images(config, quiet=True),
        vae_sha256=hashes.sha256(config.vae) if config.vae else "",
        lora_sha256s=[hashes.sha256(lora) for lora in config.loras],
        method_sha256s={
            name: hashes.sha256(path) if path else "" for name, path in named_files(method).items()
        },
    )


def _with_default_clip_skip(config: TrainingConfig) -> TrainingConfig:
    """The settings without a clip skip that would be used anyway, so that it makes no difference
    whether the user sets it."""
    given = config.clip_skip
    if given is None:
        return config
    if given == families.default_clip_skip(config.base, config.embedding, config.loras):
        return config.replace({"clip_skip": None})
    return config
