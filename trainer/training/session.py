"""The live state of a run, and the training step that changes it. The run around it is in
`loop.py`.

Shapes: B batch."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import memory, precision, weights
from ..data.batch import Batch
from ..data.batches import BatchStream
from ..families.base import MAIN_MEMORY, ModelFamily
from ..methods.base import Trainable
from ..noise import min_snr_weights, squared_errors
from ..observer import Observer, ScoreReport, StepReport
from ..optimization import optimizers
from ..processes import ALONE, Processes
from ..sampling.sampler import Encoded, encode_prompts, sample
from ..settings.config import TrainingConfig
from .anchor import Anchor
from .captions import CaptionEncoder
from .ema import EMA
from .gradient_step import GatheredStep, GradientStep
from .health import Health
from .per_weight_step import PerWeightStep
from .sharding import share_gradients
from .teacher import Teacher

logger = logging.getLogger(__name__)


class Session:
    """A model in training, with its optimizer, its moving average and its position in the data."""

    def __init__(
        self,
        config: TrainingConfig,
        model: ModelFamily,
        trainable: Trainable,
        batches: BatchStream,
        processes: Processes = ALONE,
    ) -> None:
        """`processes`: those that make the steps together, each with a session of its own. The
        leader's has them all do what changes the weights."""
        self.config, self.model = config, model
        self._processes = processes
        self.trainable, self.batches = trainable, batches
        self._teacher = Teacher(config, model) if config.prior.teacher_weight else None
        model.prepare_for_training(
            gradient_checkpointing=config.gradient_checkpointing,
            channels_last=config.channels_last,
            compiled=config.compile,
        )
        self.captions = CaptionEncoder(model, frozen=not trainable.trains_text_encoder)
        self._encoded_prompts: Encoded | None = None
        """Those of previews; None if their text encoder is trained."""
        self._health = Health(config)
        with memory.explained("while training was set up", self._memory_advice):
            self._data_parallel = share_gradients(
                self._losses, config, trainable.parts, model, processes
            )
            self.parameters = [p for part in trainable.parts for p in part.parameters]
            self._move_to_device()
            self.gradient_step = self._new_gradient_step()
            self.ema = self._new_average()
        self.reports: list[StepReport] = []
        self.skipped_steps = 0
        """How often fp16 left the weights unchanged because the gradients overflowed."""
        self.scores: list[ScoreReport] = []
        """One per scored step, starting with the base model."""
        self._is_changing = False
        self._batches_state = batches.state()
        self._peak_megabytes = 0.0
        self._num_resumed_steps = 0
        self._started = time.monotonic()

    def step(self) -> StepReport | None:
        """One optimizer step. None: fp16 skipped it because the gradients overflowed, so the
        weights are unchanged; call again to repeat the step with the next images.

        Raises FloatingPointError if the loss or the gradients become NaN or infinite, or one of
        `memory.OUT_OF_MEMORY`."""
        self._processes.call("step")
        with memory.explained(f"at step {len(self.reports) + 1}", self._memory_advice):
            return self._step()

    def _step(self) -> StepReport | None:
        step = len(self.reports) + 1
        # A state needs all processes, which wait for each other during the whole step.
        self._is_changing = self._data_parallel.is_sharded
        learning_rates = self.gradient_step.set_learning_rates(step)
        losses = self._accumulate_gradients(step)
        norm = self.gradient_step.clip_gradients()
        # The only time that a step waits for the device, except with released gradients.
        instance_loss, prior_loss, grad_norm = torch.stack([*losses, norm]).tolist()
        self._health.require_finite(instance_loss + prior_loss, "loss", step)
        self._health.require_finite_gradient(grad_norm, step)
        self._is_changing = True
        has_learned = self.gradient_step.update_weights(step)
        if has_learned:
            self.trainable.after_step()
            if self.ema:
                self.ema.update()
        self._batches_state = self.batches.state()
        self._is_changing = False
        if not has_learned:
            self.skipped_steps += 1
            return None
        return self._report(instance_loss, prior_loss, grad_norm, learning_rates)

    def _accumulate_gradients(self, step: int) -> Tensor:
        """Sum up the gradients of a step. Returns the losses of photos and of the class [2]."""
        micro_steps = [next(self.batches) for _ in range(self.config.gradient_accumulation)]
        batches = [batch for micro_step in micro_steps for batch in micro_step]
        batches = self._data_parallel.padded(batches)
        sums = torch.zeros(2, device=self.model.device)
        for number, batch in enumerate(batches, start=1):
            batch, is_last = batch.to(self.model.device), number == len(batches)
            with self._data_parallel.passing(is_last=is_last):
                losses = self._data_parallel.losses(batch)
                sums += batch.sums(losses.detach())
                if is_last:
                    self._processes.sum_(sums)
                    self._begin_release(sums, step)
                self.gradient_step.backward(losses.sum(), is_last=is_last)
        return sums

    def _begin_release(self, sums: Tensor, step: int) -> None:
        """Released, weights change in the last backward pass already."""
        if self.gradient_step.is_released:
            self._health.require_finite(sums.sum().item(), "loss", step)
            self._is_changing = True

    @property
    def is_whole(self) -> bool:
        """Whether weights, optimizer and moving average all belong to the last reported step, and
        can be read."""
        return not (self._is_changing or (self.ema is not None and self.ema.is_applied))

    def state(self) -> dict[str, Any]:
        """Everything that training has changed so far, as of the last complete step."""
        state = {
            "reports": [dataclasses.asdict(report) for report in self.reports],
            "scores": [dataclasses.asdict(report) for report in self.scores],
            "parameters": [parameter.detach() for parameter in self.parameters],
            "rests": [weights.rest_of(parameter) for parameter in self.parameters],
            **self.gradient_step.state(),
            "skipped_steps": self.skipped_steps,
            "average": self.ema.state() if self.ema else None,
            "batches": self._batches_state,
        }
        return dict(self._data_parallel.whole(state))

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from the `state()` of a session with the same settings and images; only the
        total number of steps may differ."""
        own = self._data_parallel.own(state)
        weights.restore_all(self.parameters, own["parameters"], state.get("rests"))
        self.gradient_step.load_state(own)
        self.skipped_steps = state.get("skipped_steps", 0)  # older states do not have it
        if self.ema:
            self.ema.load_state(own["average"])
        self.batches.load_state(state["batches"])
        total = {"total_steps": self.config.steps}
        self.reports = [StepReport(**{**report, **total}) for report in state["reports"]]
        self.scores = [ScoreReport(**report) for report in state["scores"]]
        self._batches_state, self._num_resumed_steps = state["batches"], len(self.reports)
        self._started = time.monotonic()
        self._processes.call("load_state", state)

    def draw(self, prompts: Sequence[str], observer: Observer) -> list[np.ndarray]:
        """Draw one image [H, W, 3] uint8 per prompt with the preview settings and the current
        weights. Returns an empty list, with a warning, if memory runs out."""
        try:
            with (
                self.averaged(for_drawing=True),
                precision.autocast(self.config.precision, self.model.device),
            ):
                return sample(
                    self.model, prompts, self.config.preview.sampling, size=self._preview_size,
                    observer=observer, encoded=self._encoded_prompts,
                )  # fmt: skip
        except memory.OUT_OF_MEMORY as error:
            logger.warning("The previews of step %d are left out. %s", len(self.reports), error)
            return []

    @contextmanager
    def averaged(self, *, for_drawing: bool = False) -> Iterator[None]:
        """Inside, the weights are whole, and replaced by their moving average, if there is one.
        `for_drawing`: the model can compute with them."""
        with (
            self.ema.applied() if self.ema else nullcontext(),
            self._data_parallel.whole_weights(for_drawing=for_drawing),
        ):
            yield

    def _losses(self, batch: Batch) -> Tensor:
        """Each example's share of the loss [B]. Over a step the shares sum to the mean over the
        photos plus the prior weight times the mean over the class images, and the teacher's weight
        times the mean over those that it answers."""
        process, config = self.model.noise, self.config
        noisy_latents = process.add_noise(batch.latents, batch.noise, batch.times)
        target = process.target(batch.latents, batch.noise, batch.times)
        with precision.autocast(config.precision, self.model.device, keeps_casts=False):
            if self._teacher:
                target = self._teacher.with_answers(target, batch, noisy_latents)
            conditioning = self.captions.encode(batch.captions, batch.framings)
            prediction = self.model.predict(noisy_latents, batch.times, conditioning)
        losses = batch.weights * squared_errors(prediction, target, batch.place_weights)
        if config.min_snr_gamma > 0:
            losses = losses * min_snr_weights(process, batch.times, config.min_snr_gamma)
        return losses

    def _move_to_device(self) -> None:
        """Move what steps need to the device, after a frozen text encoder has encoded all that it
        has to, so that it need not come back."""
        config, model = self.config, self.model
        if self._teacher:
            self._teacher.move_to_device()
        rests = MAIN_MEMORY if config.offload else model.device
        if self.trainable.trains_text_encoder:
            weights.move(model.text_encoders, model.device, rests)
        else:
            with (
                precision.autocast(config.precision, model.device),
                model.on_device(model.text_encoders),
            ):
                self.captions.fill_cache(caption for caption, _ in self.batches.captions)
                self._encoded_prompts = self._encode_previews()
            model.drop_text_encoders()
        weights.move(model.unet, model.device, rests)

    def _new_gradient_step(self) -> GradientStep:
        config, model, parts = self.config, self.model, self.trainable.parts
        anchor = Anchor(config, self.trainable) if config.optimizer.anchor else None
        if optimizers.updates_per_weight(config):
            return PerWeightStep(config, model, parts, self._processes, anchor)
        return GatheredStep(config, model, parts, self._health, anchor)

    def _new_average(self) -> EMA | None:
        """The leader's, which draws and writes files, or each process's of its part of weights."""
        if not self.config.ema or not (self._processes.is_leader or self._data_parallel.is_sharded):
            return None
        return EMA(self.parameters, self.config.ema_decay, self.config.seed)

    def _encode_previews(self) -> Encoded:
        preview = self.config.preview
        prompts = {*preview.prompts, preview.sampling.negative_prompt} if preview.prompts else set()
        return encode_prompts(self.model, prompts, self._preview_size)

    @property
    def _preview_size(self) -> tuple[int, int]:
        side = self.config.dataset.resolution or self.model.native_resolution
        return side, side

    def _memory_advice(self) -> str:
        return memory.training_advice(
            self.config,
            trains_text_encoder=any(
                p.name.startswith("text_encoder") for p in self.trainable.parts
            ),
            resolution=self.config.dataset.resolution or self.model.native_resolution,
            trained=self.trainable.files[0].kind,
            device=self.model.device,
        )

    def _report(
        self, instance_loss: float, prior_loss: float, grad_norm: float, rates: dict[str, float]
    ) -> StepReport:
        step, prior = len(self.reports) + 1, self.config.prior
        prior_weight = prior.weight + prior.teacher_weight
        speed = (step - self._num_resumed_steps) / (time.monotonic() - self._started)
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
        self._health.check_losses([report.instance_loss for report in self.reports])
        return report
