"""Estimates against what real training steps allocate, and against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from benchmarks.random_networks import TINY, Shape
from trainer import families, weights
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing
from trainer.families.shapes import SD15, ModelShape, read_shape
from trainer.loop import number_formats
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.planning.counting import StorageCounter
from trainer.planning.estimate import Estimate, estimate, phases
from trainer.planning.job import Job
from trainer.settings.config import DatasetConfig, ModelOptions, TrainingConfig
from trainer.training.session import Session

CPU = torch.device("cpu")
MEDIUM: Shape = {
    "unet": {**TINY["unet"], "block_out_channels": (128, 256)},
    "vae": TINY["vae"],
    "text_encoder": {**TINY["text_encoder"], "intermediate_size": 96},
}
SIDE = 32
WORD = "<sks>"
"""In captions, for methods that learn it."""
LEAN = {"weights": "24 bit", "gradient_release": True, "optimizer": {"name": "AdamW8bit"}}
IN_8_BITS = {"frozen_weights": "8 bit"}
TAUGHT = {"prior": {"teacher_weight": 1.0, "prompt": "a dog", "teacher_ratio": 0.5}}
ANCHORED = {"optimizer": {"anchor": 3.0}}
NO_MOMENTUM = "Adafactor without momentum"
CONFIG = TrainingConfig(
    base=Path("unused"),
    dataset=DatasetConfig(photos=(Path("a"),), prompt="a", resolution=2 * SIDE),
    batch_size=2,
)


@pytest.fixture(scope="module")
def checkpoint(save_fp16_checkpoint, tmp_path_factory) -> Path:
    return save_fp16_checkpoint(MEDIUM, tmp_path_factory.mktemp("m") / "medium.safetensors")


@pytest.fixture(scope="module")
def shape(checkpoint) -> ModelShape:
    return read_shape(checkpoint, ModelOptions())


def latents(count: int, *, is_prior: bool) -> dict[Example, CachedLatents]:
    size = (2 * SIDE, 2 * SIDE)
    return {
        Example(Path(f"{n}.png"), (f"a {WORD} dog",), is_prior): CachedLatents(
            torch.randn(4, SIDE, SIDE), torch.ones(4, SIDE, SIDE), Framing(size, (0, 0), size)
        )
        for n in range(count)
    }


def allocated(checkpoint: Path, config: TrainingConfig, method: Method) -> int:
    """The bytes at the peak of two real steps, with the weights and states."""
    model = families.load(checkpoint, CPU, formats=number_formats(config, method))
    photos = latents(4, is_prior=False)
    class_images = latents(4, is_prior=True) if config.prior.weight else {}
    trainable = method.attach(model, config, list(photos))
    session = Session(config, model, trainable, BatchStream(photos, class_images, config))
    session.step()
    existing = {
        each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in held(session)
    }
    counter = StorageCounter(held(session))
    with counter:
        session.step()
    return sum(existing.values()) + counter.peak


def held(session: Session) -> list[Tensor]:
    """What lies on the device between two steps."""
    networks = [session.model.unet]
    if session.trainable.trains_text_encoder:
        networks.append(session.model.text_encoders)
    teacher = session._teacher and session._teacher._unet
    networks += [teacher] if teacher else []
    average = session.ema.averages if session.ema else []
    optimizer = session.gradient_step.state()
    tensors = [p for network in networks for p in (*network.parameters(), *network.buffers())]
    tensors += [r for p in tensors if (r := weights.rest_of(p)) is not None]
    tensors += [each for each in tree_leaves(optimizer) if isinstance(each, Tensor)]
    return [*tensors, *average]


@pytest.mark.parametrize(
    ("changes", "method"),
    [
        ({}, {}),
        ({"precision": "bf16"}, {}),
        ({"precision": "bf16", "gradient_checkpointing": True, "batch_size": 3}, {}),
        ({"gradient_accumulation": 2, "ema": True}, {}),
        ({"prior": {"weight": 1.0, "prompt": "a dog"}}, {"train_text_encoder": True}),
        ({"precision": "bf16", "optimizer": {"name": "AdamW8bit"}}, {}),
        ({"optimizer": {"name": "Lion"}}, {}),
        ({"precision": "bf16", "gradient_release": True}, {}),
        ({"precision": "bf16", **LEAN, "gradient_checkpointing": True}, {}),
        ({"precision": "bf16", **LEAN, "gradient_release": False}, {}),
        ({"precision": "bf16", **LEAN, "gradient_accumulation": 2, "ema": True}, {}),
        ({"precision": "bf16", **LEAN, "weights": "bf16"}, {"train_text_encoder": True}),
        ({"precision": "bf16", **LEAN, "optimizer": {"name": NO_MOMENTUM}}, {}),
        (TAUGHT, {"train_text_encoder": True}),
        ({"precision": "bf16", **LEAN, **TAUGHT}, {}),
        ({"precision": "bf16", **ANCHORED, "gradient_release": True}, {}),
        ({"precision": "bf16", **LEAN, "optimizer": {"name": "AdamW8bit", "anchor": 3.0}}, {}),
    ],
    ids=[
        "fp32",
        "bf16",
        "checkpointed",
        "accumulated",
        "text encoder",
        "8 bit",
        "Lion",
        "released",
        "24 bit",
        "24 bit gathered",
        "24 bit accumulated",
        "bf16 weights",
        "no momentum",
        "taught",
        "24 bit taught",
        "anchored",
        "24 bit anchored",
    ],
)
def test_the_estimate_is_right_within_a_tenth(checkpoint, shape, changes, method):
    config, method = CONFIG.replace(changes), FullFineTune(**method)
    job = Job(config, method, shape, on_cuda=False)
    found = next(each for each in phases(job) if each.when == "training steps")
    assert found.total == pytest.approx(allocated(checkpoint, config, method), rel=0.1)


BF16 = {"precision": "bf16"}
CHECKPOINTED = {"gradient_checkpointing": True}


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        (BF16, {}),
        (BF16, {"rank": 4}),
        (BF16, {"rank": 32, "conv_rank": 16}),
        ({**BF16, **CHECKPOINTED, "batch_size": 3}, {"rank": 32, "conv_rank": 16}),
        ({}, {"rank": 32, "dora": True}),
        (BF16, {"rank": 32, "conv_rank": 4, "dora": True}),
        ({**BF16, **CHECKPOINTED}, {"dora": True}),
        (BF16, {"train_text_encoder": True}),
        ({**BF16, **CHECKPOINTED}, {"train_text_encoder": True, "text_encoder_rank": 4}),
        (BF16, {"placeholder": WORD, "initializer": "dog"}),
        (BF16, {"rank": 32, "dropout": 0.1, "min_rank": 8}),
        ({**BF16, "gradient_accumulation": 2, "ema": True}, {"rank": 32}),
        ({**BF16, "optimizer": {"name": "AdamW8bit"}}, {"rank": 32}),
        ({**BF16, "prior": {"weight": 1.0, "prompt": "a dog"}}, {}),
        ({**BF16, **IN_8_BITS}, {"rank": 32, "conv_rank": 16}),
        ({**BF16, **IN_8_BITS, **CHECKPOINTED}, {"train_text_encoder": True}),
        ({**BF16, **IN_8_BITS}, {"dora": True, "conv_rank": 4}),
        ({**BF16, **TAUGHT}, {"train_text_encoder": True}),
        (IN_8_BITS, {}),
    ],
    ids=lambda value: " ".join(f"{n} {v}" for n, v in value.items()) or "defaults",
)
def test_the_estimate_of_a_lora_is_right_within_a_tenth(checkpoint, shape, changes, options):
    config, method = CONFIG.replace(changes), LoRA(**options)
    job = Job(config, method, shape, on_cuda=False)
    found = next(each for each in phases(job) if each.when == "training steps")
    assert found.total == pytest.approx(allocated(checkpoint, config, method), rel=0.1)


# --- Stable Diffusion 1.5 -----------------------------------------------------------------------


def of_sd15(changes: dict[str, Any] | None = None, **method: bool) -> Estimate:
    config = CONFIG.replace({"dataset": {"resolution": 512}, "precision": "bf16"})
    config = config.replace({"gradient_checkpointing": True, "batch_size": 1, **(changes or {})})
    return estimate(Job(config, FullFineTune(**method), SD15))


def test_stable_diffusion_1_5_fits_cards_of_6_and_8_gb():
    assert of_sd15(LEAN).total < 5.0e9
    prior = {"prior": {"weight": 1.0, "prompt": "a dog"}}
    assert of_sd15({**LEAN, **prior}, train_text_encoder=True).total < 7.0e9


def test_each_setting_saves_what_it_should():
    """In GB, to the nearest tenth."""
    steps = [
        {},
        {"optimizer": {"name": "AdamW8bit"}},
        {"weights": "24 bit"},
        {"gradient_release": True},
        {"offload": True},
    ]
    changes: dict[str, Any] = {}
    found = []
    for step in steps:
        changes |= step
        found.append(round(of_sd15(changes).total / 1e9, 1))
    assert found == [13.9, 8.7, 6.3, 4.8, 2.2]


def test_accumulating_keeps_the_gradients():
    once, twice = (of_sd15({**LEAN, "gradient_accumulation": n}) for n in (1, 2))
    assert (twice.total - once.total) / 1e9 == pytest.approx(2 * 0.86, abs=0.4)


def test_the_estimate_names_its_parts_by_size():
    assert str(of_sd15()) == (
        "13.9 GB in training steps (optimizer state 6.9, weights 3.4, gradients 3.4)"
    )
    parts = of_sd15().parts
    assert [size for _, size in parts] == sorted((size for _, size in parts), reverse=True)


def test_previews_and_class_images_are_phases_of_their_own():
    config = CONFIG.replace(
        {"preview": {"prompts": ("a", "b")}, "prior": {"weight": 1.0, "prompt": "a dog"}}
    )
    job = Job(config.replace({"dataset": {"resolution": 512}, "precision": "bf16"}),
              FullFineTune(), SD15)  # fmt: skip
    found = {each.when: each for each in phases(job)}
    assert list(found) == [
        "encoding the photos", "drawing class images", "training steps", "previews"
    ]  # fmt: skip
    assert "optimizer state" not in dict(found["drawing class images"].parts)
    assert "optimizer state" in dict(found["previews"].parts)
    own = job.config.replace({"prior": {"images": (Path("x"),)}})
    assert "drawing class images" not in {each.when for each in phases(replace(job, config=own))}


def test_textual_inversion_has_no_optimizer_state_of_networks():
    method = TextualInversion(placeholder="<dog>", initializer="dog")
    config = CONFIG.replace({"dataset": {"resolution": 512}, "precision": "bf16"})
    parts = dict(estimate(Job(config, method, SD15)).parts)
    assert parts.keys() <= {"weights", "activations"}
