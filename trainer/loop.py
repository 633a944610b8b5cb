"""train(): a run from photos to a checkpoint, top to bottom. Names no family, no method and no
optimizer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

from . import families, memory, precision
from .checkpoint import prepare_folder
from .data.batches import BatchStream
from .data.examples import Example, find_examples
from .data.images import parse_color
from .evaluation.encoders import ImageEncoder
from .evaluation.preview_scorer import PreviewScorer
from .families.base import ModelFamily
from .methods.base import Method, Trainable
from .observer import Observer, StepReport
from .optimization import lr_schedules, optimizers
from .runs import disk_space
from .runs.metadata import describe_run
from .runs.outputs import Outputs
from .runs.results import TrainingResult
from .runs.run import Run, open_run
from .sampling import schedulers
from .settings.config import TrainingConfig
from .training.images import encode_images
from .training.session import Session

__all__ = ["TrainingResult", "check", "train"]

logger = logging.getLogger(__name__)

UNSCORED = (
    "This run was finished without a judge, and is found again without scores and a best step. Set "
    "on_existing to retrain to have them."
)
PUBLISHED = (
    "The file's metadata holds the prompts and the names of the photos. Switch on output.private "
    "to leave them out."
)
CLOSE_OTHERS = "Close other programs that take memory, and run the same again."


def train(
    config: TrainingConfig,
    method: Method,
    *,
    device: torch.device,
    observer: Observer | None = None,
    runs: Path | None = None,
    on_existing: str = "reuse",
    load_encoder: Callable[[], ImageEncoder] | None = None,
) -> TrainingResult:
    """Train as configured and write what came of it: a checkpoint, an embedding or both.

    With a folder for `runs`, one that is finished is not trained again, and one that was ended
    early goes on where it stood; `on_existing` is explained at `run.open_run`. Without, a run that
    ends early keeps the weights of its last step in a file.

    With a judge, which is loaded once it is needed, the previews are scored, and the weights of the
    step with the best balance are kept beside the last. Nothing of that changes the run.

    Raises ValueError or FileNotFoundError for settings and files that cannot be used, before the
    model is loaded where that is possible; OSError where nothing can be written; one of
    `memory.OUT_OF_MEMORY`; FloatingPointError once the loss is no number; RuntimeError if a part
    that was to be trained did not change. Whatever the observer raises ends the run; where it only
    wants to finish, what was learned so far is the result.
    """
    observer = observer or Observer()
    check(config, device, is_scored=load_encoder is not None)
    method.check(config)
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    photos = method.caption(photos, config.dataset.prompt)
    if runs is None:
        return _train(config, method, photos, load_encoder, device=device, observer=observer)
    with open_run(runs, config, method, photos, observer=observer, on_existing=on_existing) as run:
        if result := run.result():
            if load_encoder and not result.scores:
                logger.warning(UNSCORED)
            return result
        return _train(
            config, method, photos, load_encoder, device=device, observer=run.recorder, run=run
        )


def _train(
    config: TrainingConfig,
    method: Method,
    photos: list[Example],
    load_encoder: Callable[[], ImageEncoder] | None,
    *,
    device: torch.device,
    observer: Observer,
    run: Run | None = None,
) -> TrainingResult:
    started = run.started if run else datetime.now(timezone.utc)
    observer.on_load(config.base)
    memory.reset_peak(device)
    with memory.explained("while the model was loaded", lambda: CLOSE_OTHERS):
        model = families.load(config.base, device, config.embedding)
        trainable = method.attach(model, config, photos)
    for file in trainable.files:
        prepare_folder(file.output.folder)
    _check_space(config, model, trainable, run, is_scored=load_encoder is not None)
    instance, prior = encode_images(photos, config, model, observer)
    batches = BatchStream(instance, prior, config, num_timesteps=model.schedule.num_timesteps)
    session = Session(config, model, trainable, batches)
    description = describe_run(config, method, model, trainable, [*instance, *prior])
    outputs = Outputs(session, description, started, run.intermediate if run else ())
    scorer = (
        PreviewScorer.from_base_model(session, load_encoder(), photos, observer)
        if load_encoder
        else None
    )
    if run:
        run.begin(session)
    if scorer:
        scorer.begin()
    observer.on_start(config.steps)
    with nullcontext() if run else _keeping_the_last_step(session, outputs):
        previews = _make_steps(session, outputs, observer, run, scorer)
    steps = len(session.reports)
    if session.skipped_steps:
        logger.info(
            "fp16 skipped %d steps whose gradients overflowed, beside the %d that were made.",
            session.skipped_steps, steps,
        )  # fmt: skip
    moved = _require_movement(session, outputs)
    with memory.explained("while the result was written", lambda: CLOSE_OTHERS):
        files, best = outputs.save_final(), outputs.publish_best()
    result = TrainingResult(
        files, steps, config.steps, session.reports, moved, previews, session.scores, best,
        outputs.saves(),
    )  # fmt: skip
    if run:
        run.finish(result)
    if not config.output.private:
        logger.info(PUBLISHED)
    for path in [*best.values(), *files.values()]:
        observer.on_checkpoint(steps, path)
    return result


def _make_steps(
    session: Session,
    outputs: Outputs,
    observer: Observer,
    run: Run | None,
    scorer: PreviewScorer | None,
) -> list[np.ndarray]:
    """From where the session stands to its last step, or to the one that the observer is content
    with; gives the last previews."""
    config = session.config
    previews = run.recorder.previews() if run else []
    for step in range(len(session.reports) + 1, config.steps + 1):
        observer.on_step(_make_step(session, observer))
        is_last = observer.wants_to_finish() or step == config.steps
        if _is_preview_due(config, step, is_last=is_last) and (
            drawn := _previews(session, scorer, observer)
        ):
            previews = drawn
            observer.on_preview(step, drawn)
        if scorer and scorer.is_best(step) and not is_last:
            _announce(outputs.save_best(), step, observer, run)
        if _is_due(step, config.output.save_every):
            _announce(outputs.save_step(), step, observer, run)
        if run and _is_due(step, config.output.state_every):
            run.save_state()
        if is_last and step < config.steps:
            logger.info("Finished after step %d of %d, as asked.", step, config.steps)
            break
    return previews


def _make_step(session: Session, observer: Observer) -> StepReport:
    """The next step, which fp16 may skip several times first."""
    while (report := session.step()) is None:
        observer.on_skipped_step(len(session.reports) + 1)
    return report


def _is_preview_due(config: TrainingConfig, step: int, *, is_last: bool) -> bool:
    """The last step, which is the result, always has its previews."""
    return bool(config.preview.prompts) and (is_last or _is_due(step, config.preview.every))


def _previews(
    session: Session, scorer: PreviewScorer | None, observer: Observer
) -> list[np.ndarray]:
    return scorer.previews() if scorer else session.draw(session.config.preview.prompts, observer)


def _announce(files: Mapping[str, Path], step: int, observer: Observer, run: Run | None) -> None:
    for path in files.values():
        observer.on_checkpoint(step, path)
    if run and files:
        run.note_intermediate()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def check(config: TrainingConfig, device: torch.device, *, is_scored: bool = False) -> None:
    """Refuse what cannot be honoured, before anything is loaded."""
    if is_scored and not config.preview.prompts:
        raise ValueError(
            "There is a judge, but preview.prompts is empty, and previews are what it scores. "
            "Write four or more prompts of the subject in different places, or name no judge."
        )
    optimizers.check(config.optimizer)
    lr_schedules.check(config.optimizer, config.steps)
    precision.check(config.precision, device)
    parse_color(config.dataset.background)
    for sampling in (config.preview.sampling, config.prior.sampling):
        schedulers.check(sampling.scheduler)


def _check_space(
    config: TrainingConfig,
    model: ModelFamily,
    trainable: Trainable,
    run: Run | None,
    *,
    is_scored: bool,
) -> None:
    """Before hours are spent, on class images first of all."""
    disk_space.check(
        config,
        model,
        trainable,
        states_folder=run.states if run else None,
        steps_made=run.steps_made if run else 0,
        is_scored=is_scored,
    )


@contextmanager
def _keeping_the_last_step(session: Session, outputs: Outputs) -> Iterator[None]:
    """Whatever ends the steps early, the weights of the last one are written before it goes on."""
    try:
        yield
    except BaseException:
        if session.reports and session.is_whole:
            for path in outputs.save_step(is_last=True).values():
                logger.warning("Kept the weights of step %d: %s", len(session.reports), path)
        raise


def _require_movement(session: Session, outputs: Outputs) -> dict[str, tuple[float, float]]:
    """By part, how far its weights moved; RuntimeError if those of any part did not."""
    moved = outputs.moved()
    for part in session.trainable.parts:
        if not math.isfinite(moved[part.name][0]):
            raise FloatingPointError(
                f"The {part.name} holds weights that are infinite or not a number after "
                f"{len(session.reports)} steps. Lower its learning rate (now "
                f"{part.learning_rate:g}), or set output.dtype to fp32."
            )
        if moved[part.name][1] == 0:
            raise RuntimeError(
                f"The {part.name} was to be trained, but after {len(session.reports)} steps not "
                "one of its weights differs from the base model's. Raise its learning rate (now "
                f"{part.learning_rate:g}), or set output.dtype to fp32 so that small changes are "
                "not rounded away."
            )
    return moved
