"""Images drawn on a CUDA device match those of the CPU, and image encoders embed them alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from trainer import families
from trainer.evaluation import encoders
from trainer.observer import Observer
from trainer.sampling.sampler import sample
from trainer.sampling.schedulers import SCHEDULERS
from trainer.settings.config import (
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    ScoringConfig,
)
from trainer.toy.demo import demo_config
from trainer.toy.judge import Judge

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
PROMPTS = ["a photo of a dog", "a photo of sks dog"]
MAX_DIFFERENCE = 1.0
"""Largest mean difference, in levels from 0 to 255, of two images that differ only by rounding.
Images of two seeds differ by about 60."""


def difference(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> float:
    assert [image.shape for image in found] == [image.shape for image in expected]
    pairs = zip(found, expected, strict=True)
    return float(np.mean([np.abs(a.astype(float) - b.astype(float)).mean() for a, b in pairs]))


@pytest.fixture(scope="module")
def models(tiny_checkpoint: Path, device: torch.device):
    """The tiny model on the device and on the CPU."""
    return families.load(tiny_checkpoint, device), families.load(tiny_checkpoint, CPU)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_draws_the_same_images_as_on_the_cpu(models, exact, scheduler):
    drawing = SamplingConfig(scheduler=scheduler, steps=6, batch_size=2)
    found, expected = (sample(model, PROMPTS, drawing, size=(32, 32)) for model in models)
    assert difference(found, expected) < MAX_DIFFERENCE


class Watching(Observer):
    def __init__(self) -> None:
        self.drawn: dict[int, list[np.ndarray]] = {}

    def on_preview(self, step, images):
        self.drawn[step] = images


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_previews_are_drawn_and_change_nothing(config, run, device, exact, precision):
    config = replace(config, precision=precision)
    drawing = SamplingConfig(steps=4, scheduler="Euler ancestral")
    preview = PreviewConfig(prompts=tuple(PROMPTS), every=2, sampling=drawing)
    plain, watching = run(config, device), Watching()
    previewed = run(replace(config, preview=preview), device, observer=watching)
    assert list(watching.drawn) == [2, 4]
    for images in watching.drawn.values():
        assert [image.shape for image in images] == [(32, 32, 3)] * 2
        assert min(image.std() for image in images) > 5  # neither black nor of one colour
    losses = [[report.loss for report in result.reports] for result in (previewed, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3 if precision == "fp32" else 1e-2)


def test_class_images_match_those_of_the_cpu(config, run, device, exact, tmp_path):
    drawing = SamplingConfig(steps=4, batch_size=2)
    prior = PriorConfig(weight=0.5, prompt="a photo of a dog", num_images=3, sampling=drawing)
    made = {}
    for where in (CPU, device):
        folder = tmp_path / f"out{len(made)}"
        output = replace(config.output, folder=folder)
        result = run(replace(config, prior=prior, output=output), where)
        assert all(report.prior_loss > 0 for report in result.reports)
        made[folder] = [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.png"))]
    expected, found = made.values()
    assert len(found) == 3
    assert difference(found, expected) < MAX_DIFFERENCE


def test_the_toy_is_scored_as_on_the_cpu(run, device, tmp_path):
    """In bf16, with the toy's own scoring model."""
    config = replace(
        demo_config(tmp_path),
        prior=PriorConfig(),
        preview=PreviewConfig(
            prompts=("a photo of sks cup", "a photo of sks cup in the snow"), every=2,
            sampling=SamplingConfig(steps=10, guidance_scale=4),
        ),
        scoring=ScoringConfig(class_prompt="a photo of a cup", num_class_images=2),
        output=OutputConfig(folder=tmp_path / "out"),
        steps=2,
    )  # fmt: skip
    expected = run(config, CPU, load_encoder=Judge)
    found = run(replace(config, precision="bf16"), device, load_encoder=Judge)
    assert [report.step for report in found.scores] == [0, 2]
    for report, other in zip(found.scores, expected.scores, strict=True):
        assert report.subject == pytest.approx(other.subject, abs=0.05)
        assert report.prompt == pytest.approx(other.prompt, abs=0.05)


def test_clip_embeds_images_and_prompts_on_the_device_and_then_leaves_it(device, exact):
    side = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 1}  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                vision_config={**side, "patch_size": 8, "image_size": 32},
                text_config={**side, "vocab_size": 49408},
                projection_dim=24,
            )
        ).eval()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size=(40, 30, 3), dtype=np.uint8) for _ in range(3)]
    expected, found = encoders.ClipEncoder(model, CPU), encoders.ClipEncoder(model, device)
    for embed in ("embed_images", "embed_prompts"):
        given = images if embed == "embed_images" else PROMPTS
        torch.testing.assert_close(
            getattr(found, embed)(given), getattr(expected, embed)(given), rtol=1e-3, atol=1e-4
        )
        assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
