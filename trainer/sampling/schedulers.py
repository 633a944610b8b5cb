"""SCHEDULERS: the noise schedulers that images are sampled with, by the name a user picks from.
What a model learns to undo lives in `noise.py`, learning rates in `lr_schedules.py`."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from .. import packages
from ..noise import NoiseSchedule

logger = logging.getLogger(__name__)

# What Stable Diffusion 1's own scheduler file says; diffusers' defaults are other models'.
_SD1 = {"set_alpha_to_one": False, "steps_offset": 1}


@dataclass(frozen=True, slots=True)
class _Recipe:
    """How diffusers builds one scheduler."""

    class_name: str
    spacing: str
    """How the steps spread over the schedule, where diffusers' Stable Diffusion 1 has it so."""
    options: dict[str, Any] = field(default_factory=dict)


SCHEDULERS: dict[str, _Recipe] = {
    "DDIM": _Recipe("DDIMScheduler", "leading", {**_SD1, "clip_sample": False}),
    "PNDM": _Recipe("PNDMScheduler", "leading", {**_SD1, "skip_prk_steps": True}),
    "LMSDiscrete": _Recipe("LMSDiscreteScheduler", "linspace"),
    "Euler": _Recipe("EulerDiscreteScheduler", "linspace"),
    "Euler ancestral": _Recipe("EulerAncestralDiscreteScheduler", "linspace"),
    "DPM++ 2M": _Recipe("DPMSolverMultistepScheduler", "linspace"),
    "DPM++ 2M Karras": _Recipe(
        "DPMSolverMultistepScheduler", "linspace", {"use_karras_sigmas": True}
    ),
    "UniPC": _Recipe("UniPCMultistepScheduler", "linspace"),
    "DDPM": _Recipe("DDPMScheduler", "leading", {"steps_offset": 1, "clip_sample": False}),
}


def check(name: str) -> None:
    """Refuse, before any model is loaded, a scheduler that cannot be built."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}.")
    if name == "LMSDiscrete":
        others = [other for other in SCHEDULERS if other != name]
        packages.load("scipy", needed_by=f"The scheduler {name}", instead=_listed(others))


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def build(name: str, schedule: NoiseSchedule, steps: int) -> Any:
    """The diffusers scheduler of that name for a model with this noise schedule, its `timesteps`
    set for that many steps. It remembers earlier predictions: one per batch of images."""
    check(name)
    recipe = SCHEDULERS[name]
    # Imported here: ComfyUI's start-up should not pay for it.
    import diffusers

    num_timesteps = schedule.num_timesteps
    # One step would start, and stay, at the schedule's nearly noiseless end; all of them leave
    # "leading" no room for its offset and make "linspace" repeat a timestep.
    spacing = "trailing" if steps in (1, num_timesteps) else recipe.spacing
    scheduler = getattr(diffusers, recipe.class_name)(
        num_train_timesteps=num_timesteps,
        trained_betas=_betas(schedule).tolist(),
        prediction_type="v_prediction" if schedule.is_v_prediction else "epsilon",
        timestep_spacing=spacing,
        **recipe.options,
    )
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Else it looks its first timestep up, and where that occurs twice skips a step.
        scheduler.set_begin_index(0)
    first = int(scheduler.timesteps[0])
    if first < 0.85 * num_timesteps:
        _warn_of_late_start(name, steps, first=first, num_timesteps=num_timesteps)
    return scheduler


def step(
    scheduler: Any, prediction: Tensor, *, timestep: Tensor, latents: Tensor,
    generators: list[torch.Generator],
) -> Tensor:  # fmt: skip
    """The latents [B, C, h, w] one step further; fresh noise, where the scheduler adds any, comes
    from each image's own generator."""
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    noise = {"generator": generators} if takes_noise else {}
    result: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]
    return result


def _betas(schedule: NoiseSchedule) -> Tensor:
    """Each timestep's own noise [T]. In double precision: the scheduler multiplies it up again."""
    alphas_cumprod = schedule.alphas_cumprod.detach().cpu().double()
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / before


@cache  # Said once: a run builds schedulers for every batch and preview.
def _warn_of_late_start(name: str, steps: int, *, first: int, num_timesteps: int) -> None:
    """The images begin well below full noise, which pales them: "leading" steps are a whole number
    of timesteps apart, and what is left over at the noisy end is not walked."""
    even = [n for n in range(10, num_timesteps + 1) if num_timesteps % n == 0]
    near = {max([n for n in even if n <= steps] or even[:1]), min(n for n in even if n >= steps)}
    logger.warning(
        "%s with %d steps begins at timestep %d of %d, so images may come out pale. Choose %s "
        "steps, or a scheduler that spreads any number evenly, such as Euler or DPM++ 2M.",
        name, steps, first, num_timesteps, " or ".join(map(str, sorted(near))),
    )  # fmt: skip
