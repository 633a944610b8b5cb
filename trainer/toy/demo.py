"""The demo: trains the embedded model on a cup that it has never seen, and scores the result.

It runs the same code as for a real checkpoint; only the settings differ."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .. import families
from ..evaluation.plots import grid, loss_curve
from ..loop import TrainingResult, train
from ..methods.base import Method
from ..methods.full import FullFineTune
from ..observer import Observer
from ..sampling.sampler import sample
from ..settings.config import (
    DatasetConfig,
    ModelOptions,
    OutputConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from ..settings.presets import PRESETS
from ..storage.versions import versions
from . import MODEL, PHOTOS
from .judge import Judge
from .world import BACKGROUNDS

INSTANCE_PROMPT, CLASS_PROMPT = "a photo of sks cup", "a photo of a cup"
SUBJECT_PROMPTS = [
    INSTANCE_PROMPT,
    *(f"{INSTANCE_PROMPT} {where}" for where in BACKGROUNDS.values()),
]
KEPT_PROMPTS = [CLASS_PROMPT, CLASS_PROMPT, f"a red cup {BACKGROUNDS['snow']}", "a photo of a car"]
SAMPLING = SamplingConfig(steps=20, guidance_scale=4, seed=1000, batch_size=12)
SCORED_IMAGES = 24
"""Number of images of the subject, and of the class, to score."""


def demo_config(folder: Path) -> TrainingConfig:
    """The settings of the demo: the preset for the toy model, with the sample photos."""
    preset = {name: value for name, value in PRESETS["toy"].items() if name != "method"}
    config = TrainingConfig(
        base=MODEL,
        dataset=DatasetConfig(photos=(PHOTOS,), prompt=INSTANCE_PROMPT),
        prior=PriorConfig(prompt=CLASS_PROMPT),
        output=OutputConfig(folder=folder, name="sks-cup"),
    )
    return config.replace(preset)


METHOD = FullFineTune(**PRESETS["toy"]["method"])


def run_demo(
    config: TrainingConfig,
    device: torch.device,
    observer: Observer,
    method: Method = METHOD,
) -> dict[str, Any]:
    """Train a checkpoint or a LoRA, draw and score images before and after, write everything to the
    output folder, and return the report."""
    folder = config.output.folder
    folder.mkdir(parents=True, exist_ok=True)
    before = _draw(config.base, config.model_options, device, observer)
    started = time.monotonic()
    result = train(config, method, device=device, observer=observer)
    train_seconds = time.monotonic() - started
    after = _draw(*_trained(config, result), device, observer)
    _before_after(before, after).save(folder / "before_after.png")
    loss_curve(result.reports).save(folder / "loss.png")
    report = {**_scores(before, after), **_facts(result, train_seconds)}
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return report


Drawn = dict[str, list[np.ndarray]]
"""Images by purpose: "subject" and "class" are scored, "kept" is only shown."""


def _trained(config: TrainingConfig, result: TrainingResult) -> tuple[Path, ModelOptions]:
    """The checkpoint of the trained model, and how to read it."""
    if result.lora:
        return config.base, ModelOptions(loras=(*config.loras, result.lora))
    return result.checkpoint, ModelOptions()


def _draw(
    checkpoint: Path, options: ModelOptions, device: torch.device, observer: Observer
) -> Drawn:
    model = families.load(checkpoint, device, options=options)
    prompts = {
        "subject": SUBJECT_PROMPTS * (SCORED_IMAGES // len(SUBJECT_PROMPTS)),
        "class": [CLASS_PROMPT] * SCORED_IMAGES,
        "kept": KEPT_PROMPTS,
    }
    return {
        purpose: sample(model, texts, SAMPLING, observer=observer)
        for purpose, texts in prompts.items()
    }


def _before_after(before: Drawn, after: Drawn) -> Image.Image:
    """A grid with the rows before and after; images in a column have the same prompt and seed."""
    num_subject = len(SUBJECT_PROMPTS)
    images = [
        image
        for drawn in (before, after)
        for image in (*drawn["subject"][:num_subject], *drawn["kept"])
    ]
    return grid(images, columns=[*SUBJECT_PROMPTS, *KEPT_PROMPTS], rows=["before", "after"])


def _scores(before: Drawn, after: Drawn) -> dict[str, float]:
    judge = Judge()
    return {
        "subject_score_before": judge.subject_score(before["subject"]),
        "subject_score_after": judge.subject_score(after["subject"]),
        "prior_score_before": judge.prior_score(before["class"]),
        "prior_score_after": judge.prior_score(after["class"]),
    }


def _facts(result: TrainingResult, train_seconds: float) -> dict[str, Any]:
    return {
        "train_seconds": round(train_seconds, 1),
        "steps": len(result.reports),
        "checkpoint": (result.lora or result.checkpoint).name,
        "versions": versions(),
    }
