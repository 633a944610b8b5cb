"""SCHEDULERS: the noise schedulers for drawing images, by the name that users choose. The noise
process of training is in `noise.py`, learning-rate schedules are in `lr_schedules.py`."""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import packages
from ..noise import DiscreteNoise, FlowNoise, NoiseProcess

logger = logging.getLogger(__name__)

# From the scheduler configuration of Stable Diffusion 1; diffusers' defaults are for other models.
_SD1 = {"set_alpha_to_one": False, "steps_offset": 1}


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The diffusers class and options of a scheduler."""

    class_name: str
    spacing: str
    """diffusers' `timestep_spacing` for Stable Diffusion 1."""
    options: dict[str, Any] = field(default_factory=dict)


MIN_SIGNAL = 2**-24
"""The share of signal power at the last timestep, where a model was trained with none."""

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
    """Raises ValueError, before any model is loaded, for a scheduler that is unknown or
    unavailable."""
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, got {name!r}.")
    if name == "LMSDiscrete":
        others = [other for other in SCHEDULERS if other != name]
        packages.load("scipy", needed_by=f"The scheduler {name}", instead=_listed(others))


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def build(name: str, process: NoiseProcess, steps: int) -> Any:
    """The diffusers scheduler of that name for a model with this noise process, with `timesteps`
    set for that many steps, in the process's times. It keeps earlier predictions, so build a new
    one for each batch. Raises ValueError if it cannot draw with the process."""
    check(name)
    if isinstance(process, FlowNoise):
        return _build_for_flow(name, process, steps)
    assert isinstance(process, DiscreteNoise)
    recipe = SCHEDULERS[name]
    # Imported here to keep ComfyUI's start-up fast.
    import diffusers

    num_timesteps = process.num_timesteps
    # With one step, the other spacings start and stay at the nearly noiseless end. With all of
    # them, "leading" has no room for its offset and "linspace" repeats a timestep. A model that
    # was trained with noise alone has to start there.
    starts_at_end = steps in (1, num_timesteps) or process.has_zero_terminal_snr
    scheduler = getattr(diffusers, recipe.class_name)(
        num_train_timesteps=num_timesteps,
        trained_betas=_betas(process).tolist(),
        prediction_type="v_prediction" if process.is_v_prediction else "epsilon",
        timestep_spacing="trailing" if starts_at_end else recipe.spacing,
        **recipe.options,
    )
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise it looks up its first timestep, and skips a step if that one occurs twice.
        scheduler.set_begin_index(0)
    first = int(scheduler.timesteps[0])
    if first < 0.85 * num_timesteps:
        _warn_of_low_start(name, steps, first=first, num_timesteps=num_timesteps)
    return scheduler


def _build_for_flow(name: str, process: FlowNoise, steps: int) -> Any:
    if name != "Euler":
        raise ValueError(
            f"scheduler is {name}, but models of this kind draw with Euler. Choose it."
        )
    from diffusers import FlowMatchEulerDiscreteScheduler

    # One training timestep, so that timesteps are shares of noise.
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=process.shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps).tolist())
    return scheduler


def initial_scale(scheduler: Any) -> float:
    """The standard deviation of the noise that drawing starts from."""
    return float(getattr(scheduler, "init_noise_sigma", 1))


def scale_input(scheduler: Any, latents: Tensor, timestep: Tensor) -> Tensor:
    """The noisy latents as the model was trained with them."""
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def step(
    scheduler: Any, prediction: Tensor, *, timestep: Tensor, latents: Tensor,
    generators: list[torch.Generator],
) -> Tensor:  # fmt: skip
    """The latents [B, C, h, w] after one denoising step. Noise that the scheduler adds comes from
    each image's own generator."""
    adds_noise = "generator" in inspect.signature(scheduler.step).parameters
    noise = {"generator": generators} if adds_noise else {}
    result: Tensor = scheduler.step(prediction, timestep, latents, return_dict=False, **noise)[0]
    return result


def _betas(process: DiscreteNoise) -> Tensor:
    """The beta of each timestep [T]. In double precision, because the scheduler computes their
    cumulative product again."""
    alphas_cumprod = process.alphas_cumprod.detach().cpu().double()
    # Schedulers divide by the share of signal, so a little is left of none, as in diffusers and
    # ComfyUI.
    alphas_cumprod[-1].clamp_(min=MIN_SIGNAL)
    previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return 1 - alphas_cumprod / previous


@cache  # Once per setting: a run builds a scheduler for every batch and preview.
def _warn_of_low_start(name: str, steps: int, *, first: int, num_timesteps: int) -> None:
    """Images that start well below full noise come out pale. "leading" steps are a whole number of
    timesteps apart, so the remainder at the noisy end is left out."""
    divisors = [n for n in range(10, num_timesteps + 1) if num_timesteps % n == 0]
    below, above = [n for n in divisors if n <= steps], [n for n in divisors if n >= steps]
    nearest = {max(below or divisors[:1]), min(above)}
    logger.warning(
        "%s with %d steps starts at timestep %d of %d, so images may come out pale. Choose %s "
        "steps, or a scheduler that spreads any number of steps evenly, such as Euler or DPM++ 2M.",
        name, steps, first, num_timesteps, " or ".join(map(str, sorted(nearest))),
    )  # fmt: skip
