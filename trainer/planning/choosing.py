"""Chooses the memory settings of a run before it starts."""

from __future__ import annotations

import logging

from ..families.shapes import read_shape
from ..methods.base import Method
from ..observer import Observer
from ..settings.config import TrainingConfig
from .cards import budget, free
from .counting import UncountableError
from .job import Job
from .plan import Rules, candidates, complaint, fit, is_small

logger = logging.getLogger(__name__)

FINISHED = "finished"
"""The status of a run whose result is only looked up, which needs no memory."""


def planned(
    config: TrainingConfig, method: Method, vram: str, rules: Rules, observer: Observer
) -> TrainingConfig:
    """The settings with which a run fits the memory that `vram` says ("auto", "off", or a number of
    GB). With "off" they stay, and on a CUDA device a warning says if they will not fit. Raises
    ValueError if no settings fit, or for another `vram`."""
    limit = budget(vram, rules.device)
    if limit is None and rules.device.type != "cuda":
        return config
    try:
        return _planned(config, method, limit, rules, observer)
    except UncountableError as error:
        logger.warning(
            "How much memory the run needs could not be counted (%s), so no settings were chosen "
            "for it.", error,
        )  # fmt: skip
        return config


def _planned(
    config: TrainingConfig, method: Method, limit: int | None, rules: Rules, observer: Observer
) -> TrainingConfig:
    on_cuda = rules.device.type == "cuda"
    job = Job(config, method, read_shape(config.base, config.model_options, config.embedding),
              on_cuda, rules.num_processes)  # fmt: skip
    if limit is None:
        text = "" if is_small(job) else complaint(job, free(rules.device), rules)
        if text:
            logger.warning("%s", text)
        return config
    for changes in ({}, *candidates(job, rules)):
        changed = job.changed(changes).config
        if rules.status(changed) == FINISHED:
            return changed
    plan = fit(job, limit, rules)
    logger.info("%s", plan)
    observer.on_plan(str(plan))
    return plan.config
