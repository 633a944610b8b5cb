"""Chooses settings with which a run fits a device's memory.

Settings that the user chose stay. Of the others, the first of these rungs is taken that fits:

| weights, optimizer | GB for Stable Diffusion 1.5 | why here |
|---|---|---|
| fp32, AdamW | 13.9 | the reference |
| the same, released | 10.8 | the same updates; gradients are not clipped |
| 24 bit, AdamW8bit, released | 4.8 | what a weight learns differs by 0.14 of itself from fp32 |
| the same, offloaded | 2.2 | the same, slower |
| 24 bit, Adafactor without momentum, released | 3.1 | for cards whose computer lacks main memory |
| bf16, AdamW8bit, released | 3.9 | rounding noise that is larger than what a weight learns |
| bf16, Adafactor without momentum, released | 2.2 | the same, and no momentum |

Several processes can split the weights of the first rung among them, which is their second rung.

A LoRA's own weights are few. If the model is frozen, its rungs are: AdamW, 8-bit AdamW, and 8-bit
AdamW with the model's weights in 8 bits.

fp16 needs gathered fp32 weights, so older cards have the first rung and the same with AdamW8bit
(8.7 GB). On each rung, activations are stored rather than recomputed if that fits, and the
photos of a step go through the model in as few passes as possible: accumulating keeps gradients,
which takes more than a larger batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import torch

from .. import precision
from ..optimization.optimizers import OPTIMIZERS, check_per_weight, check_sharded
from ..settings.config import TrainingConfig
from . import remedies
from .estimate import Estimate, estimate, gigabytes
from .job import Changes, Job, setting

NO_MOMENTUM = "Adafactor without momentum"
FULL_WIDTH = 320
"""Channels of the first level of Stable Diffusion's U-Nets. Narrower models are for trying out."""


def _rung(
    weights: str, optimizer: str, release: bool, offload: bool = False,
    frozen: str = "precision", sharded: bool = False,
) -> Changes:  # fmt: skip
    return {
        "weights": weights,
        "frozen_weights": frozen,
        "optimizer.name": optimizer,
        "gradient_release": release,
        "offload": offload,
        "sharded": sharded,
    }


RUNGS = (
    _rung("fp32", "AdamW", release=False),
    _rung("fp32", "AdamW", release=True),
    _rung("24 bit", "AdamW8bit", release=True),
    _rung("24 bit", "AdamW8bit", release=True, offload=True),
    _rung("24 bit", NO_MOMENTUM, release=True),
    _rung("bf16", "AdamW8bit", release=True),
    _rung("bf16", NO_MOMENTUM, release=True),
)
SHARDED = _rung("fp32", "AdamW", release=False, sharded=True)
RUNGS_IN_FP16 = (
    _rung("fp32", "AdamW", release=False),
    _rung("fp32", "AdamW8bit", release=False),
)
RUNGS_IF_FROZEN = (
    *RUNGS_IN_FP16,
    _rung("fp32", "AdamW8bit", release=False, frozen="8 bit"),
)
COSTS: Mapping[tuple[str, Any], str] = {
    ("precision", "bf16"): "faster, with results that differ by rounding",
    ("precision", "fp16"): "faster, with results that differ by rounding",
    ("weights", "24 bit"): "trains like fp32",
    ("weights", "bf16"): "its rounding adds noise larger than what a weight learns",
    ("frozen_weights", "8 bit"): "weights of the model are rounded by about 1 %, slower",
    ("optimizer.name", "AdamW8bit"): "trains like AdamW",
    ("optimizer.name", NO_MOMENTUM): "each step follows its own photos alone",
    ("gradient_release", True): "gradients are not clipped, so max_grad_norm has no effect",
    ("offload", True): "steps take longer",
    ("sharded", True): "the processes also exchange weights, so steps take longer",
    ("gradient_checkpointing", True): "about a quarter slower",
}
"""What a choice means for the user."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The settings that were chosen for a run, and what it needs with them."""

    config: TrainingConfig
    changes: Changes
    """What was changed."""
    estimate: Estimate
    budget: int
    """Bytes that the run may allocate."""

    def __str__(self) -> str:
        head = f"Memory: {self.estimate}, of {gigabytes(self.budget)} usable"
        chosen = [_described(name, value) for name, value in self.changes.items()]
        return f"{head}. Chosen so that it fits: {'; '.join(chosen)}." if chosen else f"{head}."


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What a plan may do."""

    device: torch.device
    given: frozenset[str] = frozenset()
    """Dotted names of settings that stay as they are. So do those that differ from their default,
    except for the batch size, which presets set."""
    check: Callable[[TrainingConfig], None] = lambda config: None
    """Raises ValueError for settings that cannot be used."""
    status: Callable[[TrainingConfig], str] = lambda config: ""
    """The status of the run with these settings: "" if there is none. An unfinished run is
    preferred if it fits, because it would start over with other settings."""
    num_processes: int = 1
    """As in `Job`."""

    def is_given(self, job: Job, name: str) -> bool:
        if name in self.given:
            return True
        return name != "batch_size" and setting(job.config, name) != DEFAULTS[name]


DEFAULTS = {
    "precision": "fp32",
    "gradient_checkpointing": False,
    "gradient_accumulation": 1,
    "optimizer.max_grad_norm": 1.0,
    **RUNGS[0],
}
"""Of the settings that a plan asks for."""


def fit(job: Job, budget: int, rules: Rules) -> Plan:
    """The plan of a run that may allocate `budget` bytes: an existing run's settings if it fits,
    otherwise the best that fit. Raises ValueError if none do, with what would make it fit."""
    found = []
    unchanged: list[Changes] = [{}] if is_small(job) or rules.status(job.config) else []
    possible = list(candidates(job, rules))
    started = [each for each in possible if rules.status(job.changed(each).config)]
    for changes in (*unchanged, *started, *(possible or [{}])):
        plan = _plan(job, changes, budget)
        if plan.estimate.total <= budget:
            return plan
        found.append(plan)
    leanest = min(found, key=lambda each: each.estimate.total)
    raise ValueError(
        f"This run needs {gigabytes(leanest.estimate.total)} on the device even with the leanest "
        f"settings, but {gigabytes(budget)} are usable. "
        f"{remedies.advice(replace(job, config=leanest.config), budget, rules.check)}"
    )


def complaint(job: Job, budget: int, rules: Rules) -> str:
    """A warning that the settings do not fit, with what would make them fit; "" if they do."""
    found = estimate(job)
    if found.total <= budget:
        return ""
    return (
        f"These settings need {found}, but {gigabytes(budget)} are usable, so memory will probably "
        f"run out. {remedies.advice(job, budget, rules.check)}"
    )


def is_small(job: Job) -> bool:
    """Whether the model is much smaller than a real one. Its settings stay if they fit."""
    widths = job.model.unet.option("block_out_channels")
    return bool(widths[0] < FULL_WIDTH)


def _plan(job: Job, changes: Changes, budget: int) -> Plan:
    changed = job.changed(changes)
    different = {n: v for n, v in changes.items() if v != setting(job.config, n)}
    return Plan(config=changed.config, changes=different, estimate=estimate(changed), budget=budget)


# --- Candidates ---------------------------------------------------------------------------------


def candidates(job: Job, rules: Rules) -> Iterator[Changes]:
    """The changes that may be made, the best first."""
    seen = []
    for changes in _all(job, rules):
        wanted = {n: v for n, v in changes.items() if not rules.is_given(job, n)}
        if wanted not in seen and _is_possible(job.changed(wanted).config, job, rules):
            seen.append(wanted)
            yield wanted


def _all(job: Job, rules: Rules) -> Iterator[Changes]:
    name = "bf16" if precision.computes_in_bf16(rules.device) else "fp16"
    is_fp16 = "fp16" in (name, job.config.precision)
    photos = job.config.photos_per_step
    rungs = RUNGS_IN_FP16 if is_fp16 else RUNGS
    if rules.num_processes > 1 and not is_fp16:
        rungs = (rungs[0], SHARDED, *rungs[1:])
    for rung in rungs if job.method.trained_parts else RUNGS_IF_FROZEN:
        for checkpointing, batch_size in _passes(photos):
            yield {
                "precision": name,
                **rung,
                "gradient_checkpointing": checkpointing,
                **_split(job, rules, photos, batch_size),
            }


def _passes(photos: int) -> list[tuple[bool, int]]:
    """Whether activations are recomputed, and the batch size. A small batch needs about as much
    memory with stored activations as the whole one with recomputed ones."""
    smaller = [size for size in range(photos - 1, 0, -1) if photos % size == 0]
    return [(False, photos), (True, photos), *((True, size) for size in smaller)]


def _split(job: Job, rules: Rules, photos: int, batch_size: int) -> Changes:
    names = ("batch_size", "gradient_accumulation")
    if any(rules.is_given(job, name) for name in names):
        return {}
    return {"batch_size": batch_size, "gradient_accumulation": photos // batch_size}


def _is_possible(config: TrainingConfig, job: Job, rules: Rules) -> bool:
    would_clip = rules.is_given(job, "optimizer.max_grad_norm") and config.optimizer.max_grad_norm
    if config.gradient_release and would_clip:
        return False
    if not _is_installed(config.optimizer.name, rules.device):
        return False
    try:
        check_per_weight(config)
        check_sharded(config)
        rules.check(config)
    except ValueError:
        return False
    return True


def _is_installed(optimizer: str, device: torch.device) -> bool:
    if optimizer not in OPTIMIZERS:
        return False
    package = OPTIMIZERS[optimizer].package.replace("-", "_")
    if package == "bitsandbytes" and device.type == "mps":
        return False
    return not package or find_spec(package) is not None


# --- In words -----------------------------------------------------------------------------------


def _described(name: str, value: Any) -> str:
    cost = COSTS.get((name, value))
    shown = {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value
    return f"{name} {shown}" + (f" ({cost})" if cost else "")
