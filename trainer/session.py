"""The live state of a run and the one step that changes it. The run around it lives in `loop.py`.

Shapes: B batch."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from . import lr_schedules, memory, optimizers, precision
from .config import TrainingConfig
from .data.batches import Batch, BatchStream
from .diffusion import min_snr_weights, squared_errors
from .ema import EMA
from .families.base import Conditioning, Framing, ModelFamily
from .health import Health
from .methods.base import Part, Trainable
from .observer import Observer, ScoreReport, StepReport
from .sampling import sample

logger = logging.getLogger(__name__)


class Session:
    """A model in training: its optimizer, its average, and where it stands in the data."""

    def __init__(
        self, config: TrainingConfig, model: ModelFamily, trainable: Trainable, batches: BatchStream
    ) -> None:
        self.config, self.model = config, model
        self.trainable, self.batches = trainable, batches
        self.parameters = [p for part in trainable.parts for p in part.parameters]
        self.optimizer = optimizers.build(list(map(_group, trainable.parts)), config.optimizer)
        self.scaler = precision.grad_scaler(config.precision, model.device)
        self.ema = EMA(self.parameters, config.ema_decay) if config.ema else None
        self.captions = CaptionEncoder(model, frozen=not trainable.trains_text_encoder)
        self.reports: list[StepReport] = []
        self.scores: list[ScoreReport] = []
        """Of the steps that were judged, the base model's first."""
        self._health = Health(config)
        self._is_changing = False
        self._drawn = batches.state()
        self._peak_megabytes = 0.0
        self._steps_before = 0
        self._started = time.monotonic()
        model.prepare_for_training(
            gradient_checkpointing=config.gradient_checkpointing,
            channels_last=config.channels_last,
            compiled=config.compile,
        )

    def step(self) -> StepReport:
        """One optimizer step. FloatingPointError once its numbers are none, one of
        `memory.OUT_OF_MEMORY` where they take too much."""
        with memory.explained(f"at step {len(self.reports) + 1}", self._memory_advice):
            return self._step()

    def _step(self) -> StepReport:
        learning_rates = self._set_learning_rates(len(self.reports))
        instance_loss = prior_loss = 0.0
        for _ in range(self.config.gradient_accumulation):
            for batch in next(self.batches):
                batch = batch.to(self.model.device)
                losses = self._losses(batch)
                self.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
                instance_loss += losses[~batch.is_prior].sum().item()
                prior_loss += losses[batch.is_prior].sum().item()
        self._health.require_finite(instance_loss + prior_loss, "loss", len(self.reports) + 1)
        grad_norm = self._learn()
        report = self._report(instance_loss, prior_loss, grad_norm, learning_rates)
        self._drawn = self.batches.state()
        self._is_changing = False
        return report

    @property
    def is_whole(self) -> bool:
        """Whether weights, optimizer and average all are those of the last report."""
        return not (self._is_changing or (self.ema is not None and self.ema.is_applied))

    def state(self) -> dict[str, Any]:
        """All that the steps so far have changed, as the last whole one left it."""
        return {
            "reports": [dataclasses.asdict(report) for report in self.reports],
            "scores": [dataclasses.asdict(report) for report in self.scores],
            "parameters": [parameter.detach() for parameter in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "average": self.ema.state() if self.ema else None,
            "batches": self._drawn,
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on as the session of these same settings and images that gave this state; the number
        of steps may be another."""
        for parameter, saved in zip(self.parameters, state["parameters"], strict=True):
            parameter.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.load_state(state["average"])
        self.batches.load_state(state["batches"])
        total = {"total_steps": self.config.steps}
        self.reports = [StepReport(**{**report, **total}) for report in state["reports"]]
        self.scores = [ScoreReport(**report) for report in state["scores"]]
        self._drawn, self._steps_before = state["batches"], len(self.reports)
        self._started = time.monotonic()

    def draw(self, prompts: Sequence[str], observer: Observer) -> list[np.ndarray]:
        """One image per prompt, as previews are drawn, from the weights as they are now; none, with
        a warning, if memory runs out."""
        sampling, resolution = self.config.preview.sampling, self.config.dataset.resolution
        size = (resolution, resolution) if resolution else None
        try:
            with self.averaged(), precision.autocast(self.config.precision, self.model.device):
                return sample(self.model, prompts, sampling, size=size, observer=observer)
        except memory.OUT_OF_MEMORY as error:
            logger.warning("The previews of step %d are left out. %s", len(self.reports), error)
            return []

    def averaged(self) -> AbstractContextManager[None]:
        """Inside, the weights are their running average, if one is kept."""
        return self.ema.applied() if self.ema else nullcontext()

    def _losses(self, batch: Batch) -> Tensor:
        """Each example's share of the loss [B]: over a step they sum to the instance mean plus
        prior weight times the class mean."""
        schedule, config = self.model.schedule, self.config
        noisy_latents = schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = schedule.target(batch.latents, batch.noise, batch.timesteps)
        with precision.autocast(config.precision, self.model.device):
            given = self.captions.encode(batch.captions, batch.framings)
            prediction = self.model.predict(noisy_latents, batch.timesteps, given)
        losses = batch.weights * squared_errors(prediction, target)
        if config.min_snr_gamma > 0:
            losses = losses * min_snr_weights(schedule, batch.timesteps, config.min_snr_gamma)
        return losses

    def _learn(self) -> float:
        """Change the weights by the gathered gradients; gives the gradients' norm."""
        step, scale = len(self.reports) + 1, self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit).item()
        if not self.scaler.is_enabled():  # it leaves out such steps itself, and lowers its scale
            self._health.require_finite(norm, "gradient", step)
        self._is_changing = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._health.look_at_scale(scale, self.scaler.get_scale(), step)
        self.optimizer.zero_grad(set_to_none=True)
        self.trainable.after_step()
        if self.ema:
            self.ema.update()
        return norm

    def _memory_advice(self) -> str:
        return memory.training_advice(
            self.config,
            trains_text_encoder=any(p.name == "text_encoder" for p in self.trainable.parts),
            resolution=self.config.dataset.resolution or self.model.native_resolution,
        )

    def _set_learning_rates(self, step: int) -> dict[str, float]:
        """By part, for a step counted from 0. A part past its stop step no longer learns."""
        factor = lr_schedules.multiplier(self.config.optimizer, step, self.config.steps)
        rates = {}
        for part, group in zip(self.trainable.parts, self.optimizer.param_groups, strict=True):
            stopped = part.stop_step is not None and step >= part.stop_step
            rates[part.name] = group["lr"] = 0.0 if stopped else part.learning_rate * factor
            if stopped:
                for parameter in part.parameters:
                    parameter.requires_grad_(False)
        return rates

    def _report(
        self, instance_loss: float, prior_loss: float, grad_norm: float, rates: dict[str, float]
    ) -> StepReport:
        step, prior_weight = len(self.reports) + 1, self.config.prior.weight
        speed = (step - self._steps_before) / (time.monotonic() - self._started)
        self._peak_megabytes = max(self._peak_megabytes, taken_megabytes(self.model.device))
        report = StepReport(
            step=step,
            total_steps=self.config.steps,
            loss=instance_loss + prior_loss,
            instance_loss=instance_loss,
            prior_loss=prior_loss / prior_weight if prior_weight else None,
            learning_rates=rates,
            grad_norm=grad_norm,
            steps_per_second=speed,
            seconds_left=(self.config.steps - step) / speed,
            peak_megabytes=self._peak_megabytes,
        )
        self.reports.append(report)
        self._health.look_at_losses([report.instance_loss for report in self.reports])
        return report


def _group(part: Part) -> dict[str, Any]:
    """What the optimizer is told of a part."""
    decay = {} if part.decays else {"weight_decay": 0.0}
    return {"params": part.parameters, "lr": part.learning_rate, **decay}


class CaptionEncoder:
    """Captions to conditioning: each encoded once while the text encoder is frozen."""

    def __init__(self, model: ModelFamily, *, frozen: bool) -> None:
        self._model = model
        self._frozen = frozen
        self._known: dict[tuple[str, Framing], Conditioning] = {}

    def encode(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        if not self._frozen:
            return self._model.encode_captions(captions, framings)
        keys = list(zip(captions, framings, strict=True))
        for key in keys:
            if key not in self._known:
                with torch.no_grad():
                    self._known[key] = self._model.encode_captions([key[0]], [key[1]])
        return Conditioning.stack([self._known[key] for key in keys])


def taken_megabytes(device: torch.device) -> float:
    """The most memory taken on a CUDA device so far; elsewhere the process's memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return float(psutil.Process().memory_info().rss) / 2**20
