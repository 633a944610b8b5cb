"""The live state of a run and the one step that changes it. The run around it lives in `loop.py`.

Shapes: B batch."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import memory, precision
from ..data.batches import Batch, BatchStream
from ..families.base import Conditioning, Framing, ModelFamily
from ..methods.base import Part, Trainable
from ..noise import min_snr_weights, squared_errors
from ..observer import Observer, ScoreReport, StepReport
from ..optimization import lr_schedules, optimizers
from ..sampling.sampler import sample
from ..settings.config import TrainingConfig
from .ema import EMA
from .health import Health

logger = logging.getLogger(__name__)


class Session:
    """A model in training: its optimizer, its average, and where it stands in the data."""

    def __init__(
        self, config: TrainingConfig, model: ModelFamily, trainable: Trainable, batches: BatchStream
    ) -> None:
        self.config, self.model = config, model
        self.trainable, self.batches = trainable, batches
        self.parameters = [p for part in trainable.parts for p in part.parameters]
        model.prepare_for_training(
            gradient_checkpointing=config.gradient_checkpointing,
            channels_last=config.channels_last,
            compiled=config.compile,
        )
        self.captions = CaptionEncoder(model, frozen=not trainable.trains_text_encoder)
        with memory.explained("while training was set up", self._memory_advice):
            self._lighten()
            self.optimizer = optimizers.build(
                list(map(_group, trainable.parts)), config.optimizer, exact=model.embeddings()
            )
            self.ema = EMA(self.parameters, config.ema_decay) if config.ema else None
        self.scaler = precision.grad_scaler(config.precision, model.device)
        self.reports: list[StepReport] = []
        self.skipped_steps = 0
        """Times that fp16 left the weights as they were, because the gradients overflowed."""
        self.scores: list[ScoreReport] = []
        """Of the steps that were judged, the base model's first."""
        self._health = Health(config)
        self._is_changing = False
        self._drawn = batches.state()
        self._peak_megabytes = 0.0
        self._steps_before = 0
        self._started = time.monotonic()

    def step(self) -> StepReport | None:
        """One optimizer step; None if fp16 skipped it because the gradients overflowed: then the
        weights are as they were, and the step is still to be made, with the next images.
        FloatingPointError if the loss or the gradients become NaN or infinite, one of
        `memory.OUT_OF_MEMORY` if they take too much memory."""
        with memory.explained(f"at step {len(self.reports) + 1}", self._memory_advice):
            return self._step()

    def _step(self) -> StepReport | None:
        learning_rates = self._set_learning_rates(len(self.reports))
        instance_loss, prior_loss = self._gather_gradients()
        grad_norm = self._learn()
        self._drawn = self.batches.state()
        self._is_changing = False
        if grad_norm is None:
            self.skipped_steps += 1
            return None
        return self._report(instance_loss, prior_loss, grad_norm, learning_rates)

    def _gather_gradients(self) -> tuple[float, float]:
        """The losses of a step's photos and class images, whose gradients are added up."""
        instance_loss = prior_loss = 0.0
        for _ in range(self.config.gradient_accumulation):
            for batch in next(self.batches):
                batch = batch.to(self.model.device)
                losses = self._losses(batch)
                self.scaler.scale(losses.sum()).backward()  # type: ignore[no-untyped-call]
                instance_loss += losses[~batch.is_prior].sum().item()
                prior_loss += losses[batch.is_prior].sum().item()
        self._health.require_finite(instance_loss + prior_loss, "loss", len(self.reports) + 1)
        return instance_loss, prior_loss

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
            "skipped_steps": self.skipped_steps,
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
        self.skipped_steps = state.get("skipped_steps", 0)  # states from before it was counted
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

    def _learn(self) -> float | None:
        """Change the weights by the gathered gradients; gives the gradients' norm, or None if fp16
        skipped the step."""
        step, scale = len(self.reports) + 1, self.scaler.get_scale()
        self.scaler.unscale_(self.optimizer)
        limit = self.config.optimizer.max_grad_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit).item()
        if not self.scaler.is_enabled():  # fp16's scaler skips such steps itself
            self._health.require_finite(norm, "gradient", step)
        self._is_changing = True
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        is_skipped = self.scaler.get_scale() < scale  # it lowers its scale then, and only then
        self._health.look_at_scale(self.scaler.get_scale(), step, is_skipped=is_skipped)
        if is_skipped:
            return None
        self.trainable.after_step()
        if self.ema:
            self.ema.update()
        return norm

    def _lighten(self) -> None:
        """Keep on the device only what steps need, and frozen parts there in the number format of
        the computation."""
        config, model = self.config, self.model
        model.vae.to("cpu")
        if not self.trainable.trains_text_encoder:
            with precision.autocast(config.precision, model.device):
                self.captions.read(self.batches.captions)
            model.text_encoders.to("cpu")
        for module in model.parts().values():
            if not any(parameter.requires_grad for parameter in module.parameters()):
                precision.cast_frozen_weights(module, config.precision)

    def _memory_advice(self) -> str:
        return memory.training_advice(
            self.config,
            trains_text_encoder=any(p.name == "text_encoder" for p in self.trainable.parts),
            resolution=self.config.dataset.resolution or self.model.native_resolution,
            device=self.model.device,
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
        self._peak_megabytes = max(self._peak_megabytes, memory.used_megabytes(self.model.device))
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
            skipped_steps=self.skipped_steps,
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
        self._known: dict[tuple[str, Framing | None], Conditioning] = {}

    def encode(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        if not self._frozen:
            return self._model.encode_captions(captions, framings)
        pairs = list(zip(captions, framings, strict=True))
        self.read(pairs)
        return Conditioning.stack([self._known[self._key(*pair)] for pair in pairs])

    @torch.no_grad()
    def read(self, pairs: Iterable[tuple[str, Framing]]) -> None:
        """Encode the captions that are not known yet, one by one, so that none depends on which
        others there are."""
        for caption, framing in pairs:
            key = self._key(caption, framing)
            if key not in self._known:
                self._known[key] = self._model.encode_captions([caption], [framing])

    def _key(self, caption: str, framing: Framing) -> tuple[str, Framing | None]:
        return caption, framing if self._model.uses_framing else None
