"""How many images go through the U-Net at once, and which networks are on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.families.shapes import SD15, SDXL
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.planning.job import Job
from trainer.settings.config import DatasetConfig, TrainingConfig

CONFIG = TrainingConfig(
    base=Path("unused"), dataset=DatasetConfig(photos=(Path("a"),), prompt="a"), batch_size=3
)


def job(**changes: object) -> Job:
    return Job(CONFIG.replace(changes), FullFineTune(), SD15)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 3),
        ({"prior": {"weight": 1.0, "prompt": "a"}}, 6),
        ({"prior": {"weight": 1.0, "prompt": "a", "ratio": 0.1}}, 4),
        ({"prior": {"weight": 1.0, "prompt": "a"}, "gradient_accumulation": 2}, 6),
        ({"prior": {"weight": 1.0, "prompt": "a", "ratio": 0.5}, "gradient_accumulation": 2}, 5),
        ({"prior": {"teacher_weight": 1.0, "prompt": "a"}}, 6),
        ({"prior": {"teacher_weight": 1.0, "prompt": "a", "teacher_ratio": 0.3}}, 4),
        ({"prior": {"weight": 1.0, "teacher_weight": 1.0, "prompt": "a"}}, 9),
    ],
)
def test_class_images_share_the_pass(changes, expected):
    assert job(**changes).images_per_pass == expected


def test_the_teacher_keeps_a_copy_of_a_trained_unet():
    taught = CONFIG.replace({"prior": {"teacher_weight": 1.0, "prompt": "a"}})
    kept = [
        Job(config, method, SD15).frozen_copies
        for config in (CONFIG, taught)
        for method in (FullFineTune(), LoRA())
    ]
    assert kept == [[], [], [SD15.unet], []]


def test_a_step_has_several_passes_with_accumulation_or_several_shapes():
    assert not job().has_several_passes
    assert job(gradient_accumulation=2).has_several_passes
    assert job(dataset={"buckets": True}).has_several_passes
    assert not job(dataset={"buckets": True}, batch_size=1).has_several_passes


def test_the_size_is_the_models_own_unless_set():
    assert (job().resolution, job().side) == (512, 64)
    assert Job(CONFIG, FullFineTune(), SDXL).side == 128
    assert job(dataset={"resolution": 256}).side == 32


def test_the_text_encoder_is_there_only_if_it_is_needed_at_each_step():
    inversion = TextualInversion(placeholder="<dog>", initializer="dog")
    methods = [FullFineTune(), FullFineTune(train_text_encoder=True), inversion]
    found = [Job(CONFIG, method, SD15) for method in methods]
    assert [list(each.networks) for each in found] == [["unet"], *[["unet", "text_encoder"]] * 2]
    assert [len(each.trained) for each in found] == [1, 2, 0]
