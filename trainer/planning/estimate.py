"""Estimates the memory that a run needs on the device at its peak, in bytes.

The passes are counted (`counting.py`); weights, gradients and the optimizer's state follow from the
shapes of the weights. What CUDA and its libraries need besides, and gaps between tensors, are not
part of it: see `cards.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
from torch import Tensor

from ..families.shapes import NetworkShape
from ..families.tiles import tile_side
from ..optimization import optimizers
from ..settings.config import SamplingConfig
from . import adapters, sizes
from .adapters import AdapterShapes
from .counting import Pass, Trace, count
from .job import Job


@dataclass(frozen=True, slots=True)
class Estimate:
    """The memory at the peak of a run."""

    when: str
    """What the run does at its peak, such as "training steps"."""
    parts: tuple[tuple[str, int], ...]
    """What takes how many bytes at that time, the largest first."""

    @property
    def total(self) -> int:
        """Bytes allocated at the peak."""
        return sum(size for _, size in self.parts)

    def __str__(self) -> str:
        """On one line, with the parts that matter."""
        shown = [f"{what} {_gb(size)}" for what, size in self.parts if size >= self.total / 50]
        return f"{_gb(self.total)} GB in {self.when} ({', '.join(shown)})"


def gigabytes(size: float) -> str:
    """For messages, such as "4.9 GB"."""
    return f"{_gb(size)} GB"


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f}"


def estimate(job: Job) -> Estimate:
    """The estimate of a run: that of the phase which needs most. The first call for a network takes
    several seconds, because passes are counted."""
    return max(phases(job), key=lambda phase: phase.total)


def phases(job: Job) -> list[Estimate]:
    """The estimate of each phase of a run, in their order."""
    config = job.config
    found = [_encoding(job)]
    if config.prior.weight > 0 and not config.prior.images:
        batch_size = min(config.prior.sampling.batch_size, config.prior.num_images)
        found += _drawing(job, "drawing class images", config.prior.sampling, batch_size)
    found.append(_steps(job))
    if config.preview.prompts:
        sampling = config.preview.sampling
        batch_size = min(sampling.batch_size, len(config.preview.prompts))
        found += _drawing(job, "previews", sampling, batch_size, _state(job))
    return found


# --- Training steps -----------------------------------------------------------------------------


def _steps(job: Job) -> Estimate:
    timeline = _Timeline.of(job)
    passes, updates = timeline.activations + timeline.copies, timeline.updates
    if job.has_several_passes:
        gradients = np.full(len(passes), _gradient_bytes(job))
    elif job.config.gradient_release:
        gradients = np.zeros(len(passes))
    else:
        gradients = timeline.gradients
    if not job.config.gradient_release:
        updates = np.zeros(len(passes))
    at = int((passes + gradients + updates).argmax())
    during_pass = {
        "activations": timeline.activations[at],
        "copies of the weights": timeline.copies[at],
        "gradients": gradients[at],
        "update of a weight": updates[at],
    }
    found = _phase("training steps", _state(job), during_pass)
    largest = max((p.numel() for p in _parameters(job)), default=0)
    if job.config.gradient_release or not largest:
        return found
    after_pass = {
        "gradients": _gradient_bytes(job),
        "update of a weight": sizes.update_bytes(job.config, largest)
        - (4 if job.config.weights == "fp32" else 2) * largest,
    }
    return max(found, _phase("training steps", _state(job), after_pass), key=lambda e: e.total)


@dataclass(frozen=True, slots=True, eq=False)
class _Timeline:
    """Bytes at each of N moments of the passes of a step: the text encoders forward, the U-Net
    forward and backward, the text encoders backward."""

    activations: np.ndarray
    copies: np.ndarray
    gradients: np.ndarray
    updates: np.ndarray
    """For releasing gradients: the temporary memory of updating a weight."""

    @staticmethod
    def of(job: Job) -> _Timeline:
        unet, *text_encoders = job.networks
        found = _Timeline._part(job, unet, _count(job, unet))
        for part in text_encoders:
            trace = _count(job, part)
            found = found._inside(_Timeline._part(job, part, trace), trace.backward)
        return found

    @staticmethod
    def _part(job: Job, part: str, trace: Trace) -> _Timeline:
        config, shape = job.config, job.networks[part]
        per_number = 4.0  # adapters are in fp32
        if shape in job.trained:
            num_weights = sum(p.numel() for p in shape.parameters())
            per_number = sizes.gradient_bytes(config, shape) / num_weights
        return _Timeline(
            trace.activations * job.images_per_pass,
            trace.copies * (config.weights == "fp32"),
            trace.gradients * (per_number / 4),
            np.array([sizes.update_bytes(config, size) if size else 0 for size in trace.arrived]),
        )

    def _inside(self, text: _Timeline, backward: int) -> _Timeline:
        """Put this timeline in the middle of that of a text encoder, which goes backward from a
        moment on."""
        kept = [text.activations[backward - 1], text.copies[backward - 1], 0, 0]
        done = [0, 0, self.gradients[-1], 0]
        return _Timeline(
            *(
                np.concatenate([outer[:backward], inner + before, outer[backward:] + after])
                for outer, inner, before, after in zip(
                    text._arrays(), self._arrays(), kept, done, strict=True
                )
            )
        )

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.activations, self.copies, self.gradients, self.updates


def _count(job: Job, part: str) -> Trace:
    shape = job.networks[part]
    is_unet, is_trained = shape.kind == "unet", shape in job.trained
    shapes = job.adapters.get(part, ())
    has_text_gradients = not is_trained and (
        job.method.encodes_captions_at_each_step if is_unet else job.method.trains_vectors
    )
    return count(
        Pass(
            shape,
            job.side if is_unet else 0,
            job.precision,
            job.on_cuda,
            checkpointed=job.config.gradient_checkpointing,
            trained=is_trained,
            adapters=shapes,
            text_gradients=has_text_gradients,
            in_8_bits=not is_trained and job.is_in_8_bits,
            forward_only=not (is_trained or shapes or has_text_gradients),
        )
    )


# --- What is there all the time -----------------------------------------------------------------


def _state(job: Job) -> dict[str, float]:
    """What a session holds between two steps."""
    config = job.config
    return {
        "weights": sum(_weight_bytes(job, each) for each in job.networks.values())
        + sum(adapters.num_bytes(*each) for each in job.adapted),
        "optimizer state": _optimizer_bytes(job),
        "moving average": sum(sizes.average_bytes(config, p) for p in _parameters(job))
        if config.ema
        else 0,
        "teacher": sum(sizes.frozen_bytes(each, config.precision) for each in job.frozen_copies),
    }


def _parameters(job: Job) -> Iterable[Tensor]:
    return chain(
        *(shape.parameters() for shape in job.trained),
        *(adapters.parameters(*each) for each in job.adapted),
    )


def _weight_bytes(job: Job, shape: NetworkShape) -> int:
    if shape in job.trained:
        return sum(sizes.weight_bytes(job.config, each) for each in shape.parameters())
    return sizes.frozen_bytes(shape, job.config.precision, in_8_bits=job.is_in_8_bits)


def _optimizer_bytes(job: Job) -> int:
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
    return max(found, default=0) if job.config.offload else sum(found)


def _gradient_bytes(job: Job) -> int:
    """Bytes of all gradients."""
    of_networks = sum(sizes.gradient_bytes(job.config, shape) for shape in job.trained)
    of_adapters = (4 * p.numel() for each in job.adapted for p in adapters.parameters(*each))
    return of_networks + sum(of_adapters)


# --- Other phases -------------------------------------------------------------------------------


def _encoding(job: Job) -> Estimate:
    """Photos are encoded one by one in fp32, before the other networks are on the device. In tiles
    if memory is short."""
    vae, side = job.model.vae, tile_side(job.side) * job.model.latent_factor
    trace = count(Pass(vae, side, "fp32", job.on_cuda, forward_only=True))
    during = {"VAE": sizes.frozen_bytes(vae, "fp32"), "activations": trace.activations.max()}
    return _phase("encoding the photos", during)


def _drawing(
    job: Job,
    when: str,
    sampling: SamplingConfig,
    batch_size: int,
    state: dict[str, float] | None = None,
) -> list[Estimate]:
    """The U-Net's passes, and decoding the images one by one, in tiles if memory is short."""
    shapes = job.adapters.get("unet", ()) if state else ()
    state = state or {"weights": _weight_bytes(job, job.model.unet)}
    network, precision = job.model.unet, job.precision
    trained = network in job.trained
    unet = count(
        Pass(
            network, job.side, precision, job.on_cuda, trained=trained, adapters=shapes,
            in_8_bits=not trained and job.is_in_8_bits, forward_only=True,
        )
    )  # fmt: skip
    state = state | {"copies of the weights": _copies(job, shapes) + _restored(unet, job)}
    vae = job.model.vae
    state |= {"VAE": sizes.frozen_bytes(vae, "fp32")}
    tile = tile_side(job.side)
    decoding = count(Pass(vae, tile, precision, job.on_cuda, forward_only=True, decodes=True))
    return [
        _phase(when, state, {"activations": peak})
        for peak in (unet.peak(batch_size), decoding.peak(1))
    ]


def _copies(job: Job, shapes: AdapterShapes) -> int:
    """Autocast's copies of the U-Net's fp32 weights and of its adapters, all of which exist while
    images are drawn."""
    is_needed = job.config.precision != "fp32" and job.config.weights == "fp32"
    shape = job.model.unet
    copied = shape.parameters() if shape in job.trained else adapters.parameters(shape, shapes)
    return sum(2 * p.numel() for p in copied if p.ndim > 1) if is_needed else 0


def _restored(trace: Trace, job: Job) -> int:
    """The largest weight that a pass restores from 8 bits."""
    return int(trace.copies.max()) if job.is_in_8_bits else 0


def _phase(when: str, *parts: Mapping[str, float]) -> Estimate:
    found: dict[str, int] = {}
    for name, size in chain.from_iterable(each.items() for each in parts):
        found[name] = found.get(name, 0) + int(size)
    largest_first = sorted(found.items(), key=lambda item: -item[1])
    return Estimate(when, tuple((name, size) for name, size in largest_first if size > 0))
