"""What a session holds all the time, in bytes on the device of one process: of weights that are
split among processes, one part."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from torch import Tensor

from ..families.shapes import NetworkShape
from ..optimization import optimizers
from ..training.sharding import LARGEST_SHARE
from . import adapters, sizes
from .job import Job

WHOLE_SHARE = 2 * LARGEST_SHARE
"""The largest share of split weights that are whole during a step: those of two modules."""


def between_steps(job: Job) -> dict[str, float]:
    """What a session holds between two steps."""
    config, trained = job.config, _trained_bytes(job)
    frozen = sum(weight_bytes(job, each) for each in job.networks.values()) - trained
    adapted = sum(adapters.num_bytes(*each) for each in job.adapted)
    average = sum(sizes.average_bytes(config, each) for each in parameters(job))
    return {
        "weights": trained / job.num_shards + frozen + adapted,
        "optimizer state": _optimizer_bytes(job),
        "moving average": average / job.num_shards if config.ema else 0,
        "teacher": sum(sizes.frozen_bytes(each, config.precision) for each in job.frozen_copies),
    }


def whole_in_steps(job: Job) -> dict[str, float]:
    """What a step needs besides if weights are split."""
    return {"whole weights": _trained_bytes(job) * WHOLE_SHARE} if job.num_shards > 1 else {}


def whole_in_previews(job: Job) -> dict[str, float]:
    """What the process that draws previews needs besides if weights are split."""
    return {"whole weights": _trained_bytes(job)} if job.num_shards > 1 else {}


def parameters(job: Job) -> Iterable[Tensor]:
    """The trained weights."""
    return chain(
        *(shape.parameters() for shape in job.trained),
        *(adapters.parameters(*each) for each in job.adapted),
    )


def weight_bytes(job: Job, shape: NetworkShape) -> int:
    """Bytes of a network's weights, which are whole."""
    if shape in job.trained:
        return sum(sizes.weight_bytes(job.config, each) for each in shape.parameters())
    return sizes.frozen_bytes(shape, job.config.precision, in_8_bits=job.is_in_8_bits)


def gradient_bytes(job: Job) -> float:
    """Bytes of all gradients."""
    of_networks = sum(sizes.gradient_bytes(job.config, shape) for shape in job.trained)
    of_adapters = (4 * p.numel() for each in job.adapted for p in adapters.parameters(*each))
    return of_networks / job.num_shards + sum(of_adapters)


def _trained_bytes(job: Job) -> int:
    return sum(weight_bytes(job, shape) for shape in job.trained)


def _optimizer_bytes(job: Job) -> float:
    """With offload, only the state of the weight that is updated."""
    found = [
        optimizers.state_bytes(job.config.optimizer.name, [p], shape.embeddings())
        for shape in job.trained
        for p in shape.parameters()
    ]
    found += [
        optimizers.state_bytes(job.config.optimizer.name, [p])
        for each in job.adapted
        for p in adapters.parameters(*each)
    ]
    return max(found, default=0) if job.config.offload else sum(found) / job.num_shards
