"""train(): one run from photos to a checkpoint, top to bottom. Independent of the model family, the
training method and the optimizer."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import families, memory, precision
from .checkpoint import prepare_folder, require_inside
from .data.batches import BatchStream, check_share
from .data.examples import Example, find_photos
from .data.images import parse_color
from .evaluation.encoders import ImageEncoder
from .evaluation.preview_scorer import PreviewScorer
from .families.base import ModelFamily
from .families.networks import NumberFormats
from .methods.base import Method
from .observer import Observer, StepReport
from .optimization import lr_schedules, optimizers
from .planning.choosing import planned
from .planning.plan import Rules
from .processes import ALONE, Processes
from .runs import disk_space
from .runs.metadata import describe_run
from .runs.movement import notes_of_formats, require_movement
from .runs.opening import open_run, statuses
from .runs.outputs import Outputs
from .runs.results import TrainingResult
from .runs.run import Run
from .runs.untracked_run import UntrackedRun
from .sampling import schedulers
from .settings.config import TrainingConfig
from .training import speed
from .training.images import encode_images
from .training.session import Session

__all__ = ["TrainingResult", "check", "train"]

logger = logging.getLogger(__name__)

UNSCORED = (
    "This run was trained without scoring, so it has no scores and no best step. Set on_existing "
    "to retrain to get them."
)
PUBLISHED = (
    "The file's metadata contains the prompts and the names of the photos. Turn on output.private "
    "to leave them out."
)
CLOSE_OTHERS = "Close other programs that use memory, and run the same again."


def train(
    config: TrainingConfig,
    method: Method,
    *,
    device: torch.device,
    observer: Observer | None = None,
    runs: Path | None = None,
    on_existing: str = "reuse",
    load_encoder: Callable[[], ImageEncoder] | None = None,
    vram: str = "off",
    given: Collection[str] = (),
    processes: Processes = ALONE,
) -> TrainingResult:
    """Train as configured, and write a checkpoint, an embedding or both.

    runs: The folder where runs are kept. A finished run in it is not trained again, and a stopped
        one is resumed; `opening.open_run` explains `on_existing`. None: nothing is kept, and a run
        that is stopped saves the weights of its last step.
    load_encoder: Loads CLIP or DINO when it is first needed, to score the previews. The weights of
        the step with the best balance are then saved beside the last ones. Training itself is not
        affected. None: previews are not scored.
    vram: The memory that the run may use: "auto" for what is free on a CUDA device, or a number of
        GB, such as "8", for a card of that size. Settings are then chosen so that the run fits.
        "off": the settings stay.
    given: Dotted names of settings that `vram` must not change, even if they have their defaults.
    processes: Those that share the images of each step; this one is their leader, and the others
        are in `follower.py`. The result does not depend on their number, except by rounding.

    Raises ValueError or FileNotFoundError for unusable settings and files, before the model is
    loaded if possible; OSError if the result cannot be written; one of `memory.OUT_OF_MEMORY`;
    FloatingPointError if the loss, gradients or weights become NaN or infinite; RuntimeError if a
    part that should be trained did not change. An exception from the observer stops the run. If the
    observer wants to finish instead, the result is what was trained so far.
    """
    check(config, device, is_scored=load_encoder is not None)
    method.check(config)
    photos = find_photos(config.dataset)
    photos = method.caption(photos, config.dataset.prompt)
    observer = observer or Observer()
    existing = runs if on_existing != "retrain" else None
    rules = Rules(
        device=device,
        given=frozenset(given),
        check=method.check,
        num_processes=processes.size,
        status=statuses(existing, config, method, photos) if vram != "off" else lambda other: "",
    )
    config = planned(config, method, vram, rules, observer)
    check_share(config, processes)
    with open_run(runs, config, method, photos, observer=observer, on_existing=on_existing) as run:
        if result := run.result():
            if load_encoder and not result.scores:
                logger.warning(UNSCORED)
            return result
        return _train(
            config, method, photos, load_encoder, device=device, run=run, processes=processes
        )


def _train(
    config: TrainingConfig,
    method: Method,
    photos: list[Example],
    load_encoder: Callable[[], ImageEncoder] | None,
    *,
    device: torch.device,
    run: Run | UntrackedRun,
    processes: Processes,
) -> TrainingResult:
    observer = run.observer
    # The start, unlike the current date, is the same after the run is resumed.
    config = dataclasses.replace(config, output=config.output.dated(run.started))
    require_inside(config.output)
    observer.on_load(config.base)
    memory.reset_peak(device)
    processes.call("load", config, method, photos)
    with memory.explained("while the model was loaded", lambda: CLOSE_OTHERS):
        model = load_model(config, method, device)
        trainable = method.attach(model, config, photos)
    for note in [*model.source.notes, *notes_of_formats(trainable)]:
        logger.warning("%s", note)
    for file in trainable.files:
        prepare_folder(file.output.folder)
    disk_space.check(
        config, model, trainable,
        states_folder=run.states, steps_made=run.steps_made, is_scored=load_encoder is not None,
    )  # fmt: skip
    instance, prior = encode_images(photos, config, model, observer, processes)
    processes.call("begin", instance, prior)
    batches = BatchStream(instance, prior, config, noise=model.noise, processes=processes)
    session = Session(config, model, trainable, batches, processes)
    description = describe_run(config, method, model, trainable, [*instance, *prior])
    outputs = Outputs(
        session, description, run.started, run.intermediate, is_resumed=run.is_resumed
    )
    previewer: Previewer = UnscoredPreviews(session, observer)
    if load_encoder:
        previewer = PreviewScorer.from_base_model(session, load_encoder(), photos, observer)
    elif config.preview.prompts:
        _draw_base_model(previewer, observer)
    run.begin(session)
    previewer.begin()
    observer.on_start(config.steps)
    with run.stepping(session, outputs):
        previews = _make_steps(session, outputs, previewer, run)
    result = _write_result(session, outputs, previews)
    run.finish(result)
    if used := speed.describe(session):
        logger.info(used)
    if not config.output.private:
        logger.info(PUBLISHED)
    for path in [*result.best.values(), *result.files.values()]:
        observer.on_checkpoint(result.steps, path)
    return result


def load_model(config: TrainingConfig, method: Method, device: torch.device) -> ModelFamily:
    """The base model of a run, before the method is attached to it."""
    formats = number_formats(config, method)
    return families.load(config.base, device, config.embedding, config.model_options, formats)


def number_formats(config: TrainingConfig, method: Method) -> NumberFormats:
    """The number formats of the model in a run's memory."""
    return NumberFormats(
        config.precision, config.weights, method.trained_parts, config.frozen_weights
    )


class UnscoredPreviews:
    """Takes the place of a `PreviewScorer` if previews are not scored."""

    def __init__(self, session: Session, observer: Observer) -> None:
        self._session, self._observer = session, observer

    def begin(self) -> None: ...

    def previews(self) -> list[np.ndarray]:
        """One image [H, W, 3] uint8 per preview prompt; [] if memory runs out."""
        return self._session.draw(self._session.config.preview.prompts, self._observer)

    def is_best(self, step: int) -> bool:
        return False


Previewer = PreviewScorer | UnscoredPreviews


def _draw_base_model(previewer: Previewer, observer: Observer) -> None:
    """Draw the first previews, from the same noise as all later ones. Call this before the weights
    change."""
    if drawn := previewer.previews():
        observer.on_preview(0, drawn)


def _make_steps(
    session: Session, outputs: Outputs, previewer: Previewer, run: Run | UntrackedRun
) -> list[np.ndarray]:
    """Train from the session's current step to the last one, or until the observer wants to finish.
    Return the last previews."""
    config, observer = session.config, run.observer
    previews = run.previews()
    if len(session.reports) >= config.steps and config.preview.prompts and not previews:
        previews = session.draw(config.preview.prompts, observer)  # a finished state of another run
    for step in range(len(session.reports) + 1, config.steps + 1):
        observer.on_step(_make_step(session, observer))
        is_last = observer.wants_to_finish() or step == config.steps
        # The last step always has previews, because it is the result.
        is_shown = observer.wants_preview() or is_last or _is_due(step, config.preview.every)
        if config.preview.prompts and is_shown and (drawn := previewer.previews()):
            previews = drawn
            observer.on_preview(step, drawn)
        if previewer.is_best(step) and not is_last:
            _announce(outputs.save_best(), step, run)
        if observer.wants_save() or _is_due(step, config.output.save_every):
            _announce(outputs.save_step(), step, run)
        if _is_due(step, config.output.state_every):
            run.save_state()
        if is_last and step < config.steps:
            logger.info("Finished early, after step %d of %d, as requested.", step, config.steps)
            break
    return previews


def _make_step(session: Session, observer: Observer) -> StepReport:
    """Make the next step; fp16 may first skip several attempts."""
    while (report := session.step()) is None:
        observer.on_skipped_step(len(session.reports) + 1)
    return report


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _announce(files: Mapping[str, Path], step: int, run: Run | UntrackedRun) -> None:
    for path in files.values():
        run.observer.on_checkpoint(step, path)
    if files:
        run.note_intermediate()


def _write_result(
    session: Session, outputs: Outputs, previews: Sequence[np.ndarray]
) -> TrainingResult:
    """Write the files of the last step and name those of the best step."""
    steps = len(session.reports)
    if session.skipped_steps:
        logger.info("fp16 skipped %d steps whose gradients overflowed, in addition to the %d steps "
                    "made.", session.skipped_steps, steps)  # fmt: skip
    moved = require_movement(session, outputs)
    with memory.explained("while the result was written", lambda: CLOSE_OTHERS):
        files, best = outputs.save_final(), outputs.publish_best()
    return TrainingResult(
        files=files,
        steps=steps,
        total_steps=session.config.steps,
        reports=session.reports,
        moved=moved,
        previews=previews,
        scores=session.scores,
        best=best,
        saves=outputs.saves(),
    )


def check(config: TrainingConfig, device: torch.device, *, is_scored: bool = False) -> None:
    """Raise ValueError for settings that cannot be used, before anything is loaded."""
    if is_scored and not config.preview.prompts:
        raise ValueError(
            "Scoring needs previews, but preview.prompts is empty. Write four or more prompts that "
            "show the subject in different places, or choose no judge."
        )
    optimizers.check(config.optimizer)
    optimizers.check_per_weight(config)
    optimizers.check_sharded(config)
    lr_schedules.check(config.optimizer, config.steps)
    precision.check(config.precision, device)
    parse_color(config.dataset.background)
    for sampling in (config.preview.sampling, config.prior.sampling):
        schedulers.check(sampling.scheduler)
