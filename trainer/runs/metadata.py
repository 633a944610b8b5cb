"""The metadata in the safetensors header of a saved file: ModelSpec 1.0.1, the `ss_*` keys that
other programs display, and our own `dreambooth.*` keys. All values are strings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.clip_skip import CLIP_SKIP_KEY
from ..methods.base import Method, Trainable
from ..observer import StepReport
from ..settings.config import OutputConfig, TrainingConfig
from ..settings.values import as_json
from ..storage.hashing import sha256_of
from ..storage.versions import versions

PRIVATE = ("modelspec.trigger_phrase", "dreambooth.config", "dreambooth.method",
           "dreambooth.images")  # fmt: skip
"""The keys that contain prompts or the names of photos."""


def describe_run(
    config: TrainingConfig,
    method: Method,
    model: ModelFamily,
    trainable: Trainable,
    examples: Sequence[Example],
) -> dict[str, str]:
    """The metadata that is known before the first step."""
    rates = {part.name: part.learning_rate for part in trainable.parts}
    num_prior = sum(example.is_prior for example in examples)
    resolution = config.dataset.resolution or model.native_resolution
    ours: dict[str, Any] = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": model.architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": config.output.in_subfolder().name,
        "modelspec.resolution": f"{resolution}x{resolution}",
        "modelspec.prediction_type": model.noise.prediction,
        "modelspec.trigger_phrase": config.dataset.prompt,
        "modelspec.description": f"DreamBooth of {model.path.name}",
        "ss_output_name": config.output.in_subfolder().name,
        "ss_sd_model_name": model.path.name,
        "ss_new_sd_model_hash": model.source.sha256(),
        "ss_base_model_version": model.base_version,
        "ss_unet_lr": rates.get("unet"),
        "ss_text_encoder_lr": rates.get("text_encoder"),
        "ss_learning_rate": config.optimizer.learning_rate,
        "ss_optimizer": config.optimizer.name,
        "ss_lr_scheduler": config.optimizer.lr_schedule,
        "ss_lr_warmup_steps": config.optimizer.warmup_steps,
        "dreambooth.anchor": config.optimizer.anchor or None,
        "ss_max_grad_norm": config.optimizer.max_grad_norm,
        "ss_max_train_steps": config.steps,
        "ss_total_batch_size": config.batch_size,
        "ss_gradient_accumulation_steps": config.gradient_accumulation,
        "ss_gradient_checkpointing": config.gradient_checkpointing,
        "ss_mixed_precision": {"fp32": "no"}.get(config.precision, config.precision),
        "ss_seed": config.seed,
        "ss_min_snr_gamma": config.min_snr_gamma or None,
        "dreambooth.min_snr": "photos and class images" if config.min_snr_gamma else None,
        "ss_noise_offset": config.noise_offset or None,
        "ss_prior_loss_weight": config.prior.weight,
        "dreambooth.teacher_weight": config.prior.teacher_weight or None,
        "ss_num_train_images": len(examples) - num_prior,
        "ss_num_reg_images": num_prior,
        "ss_resolution": f"({resolution}, {resolution})",
        "ss_enable_bucket": config.dataset.buckets,
        "ss_clip_skip": model.clip_skip,
        CLIP_SKIP_KEY: model.clip_skip,
        "dreambooth.base_sha256": model.source.sha256(),
        "ss_vae_name": config.vae.name if config.vae else None,
        "dreambooth.loras": model.source.overrides.get("loras"),
        "ss_new_vae_hash": model.source.overrides.get("vae_sha256"),
        "dreambooth.config": json.dumps(as_json(config)),
        "dreambooth.method": json.dumps({type(method).__name__: as_json(method)}),
        "dreambooth.images": json.dumps([_describe_image(example) for example in examples]),
        "dreambooth.versions": json.dumps(versions()),
    }
    described = {key: str(value) for key, value in ours.items() if value is not None}
    return without_private(described, config.output)


def without_private(metadata: Mapping[str, str], output: OutputConfig) -> dict[str, str]:
    """The metadata, without prompts and names of photos if `output.private` is set."""
    removed = PRIVATE if output.private else ()
    return {key: text for key, text in metadata.items() if key not in removed}


def describe_progress(reports: Sequence[StepReport], started: datetime) -> dict[str, str]:
    """The metadata that is known only when the file is written."""
    now = datetime.now(timezone.utc)
    return {
        "modelspec.date": now.isoformat(timespec="seconds"),
        "ss_steps": str(len(reports)),
        "ss_training_started_at": str(started.timestamp()),
        "ss_training_finished_at": str(now.timestamp()),
        "dreambooth.losses": json.dumps([round(report.loss, 6) for report in reports]),
        "dreambooth.skipped_steps": str(reports[-1].skipped_steps if reports else 0),
    }


def _describe_image(example: Example) -> dict[str, str | bool]:
    mask = {"mask_sha256": sha256_of(example.mask)} if example.mask else {}
    return {
        "name": example.path.name,
        "sha256": sha256_of(example.path),
        "caption_sha256": hashlib.sha256("\n".join(example.captions).encode()).hexdigest(),
        "is_class_image": example.is_prior,
        **mask,
    }
