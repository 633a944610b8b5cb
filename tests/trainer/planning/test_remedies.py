"""What is suggested to make a run fit."""

from __future__ import annotations

from dataclasses import replace

from tests.trainer.planning.test_plan import CONFIG, JOB, RULES
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.planning import remedies
from trainer.planning.estimate import estimate
from trainer.planning.remedies import advice

LEAN = {
    "precision": "bf16", "weights": "24 bit", "optimizer.name": "AdamW8bit",
    "gradient_release": True, "gradient_checkpointing": True, "offload": True,
}  # fmt: skip


def said(job, budget: int, check=RULES.check) -> str:
    return advice(job, budget, check)


def test_the_first_two_changes_that_suffice_are_named():
    assert said(JOB, estimate(JOB).total - 1) == (
        "To make it fit, set precision to bf16, or set optimizer.name to AdamW8bit."
    )


def test_lean_settings_leave_the_model_and_the_images():
    method = FullFineTune(train_text_encoder=True)
    job = replace(JOB.changed({**LEAN, "ema": True}), method=method)
    total = estimate(job).total
    assert said(job, total - 1).startswith("To make it fit, switch off ema, or set batch_size to 1")
    without = [replace(job, method=FullFineTune()), job.changed({"ema": False})]
    assert all(estimate(each).total < total for each in without)


def test_changes_are_combined_if_one_is_not_enough():
    job = replace(JOB.changed({**LEAN, "ema": True, "batch_size": 2}),
                  method=FullFineTune(train_text_encoder=True))  # fmt: skip
    least = estimate(replace(job.changed({"ema": False, "batch_size": 1}), method=FullFineTune()))
    assert said(job, least.total) == (
        "To make it fit, switch off ema; set batch_size to 1 (now 2); switch off "
        "train_text_encoder."
    )


def test_all_text_encoders_are_named_that_can_be_switched_off():
    two = replace(JOB.model, text_encoders=JOB.model.text_encoders * 2)
    both = FullFineTune(train_text_encoder=True, train_text_encoder_2=True)
    job = replace(JOB.changed({**LEAN, "batch_size": 1}), method=both, model=two)
    least = estimate(replace(job, method=FullFineTune()))
    assert said(job, least.total) == (
        "To make it fit, switch off train_text_encoder and train_text_encoder_2."
    )


def test_a_released_run_raises_its_batch_rather_than_accumulates():
    small = {"dataset.resolution": 16}
    job = JOB.changed({**LEAN, **small, "batch_size": 1, "gradient_accumulation": 2})
    text = said(job, estimate(job).total - 1)
    assert text.startswith("To make it fit, set batch_size to 2 and gradient_accumulation to 1")


def test_a_lower_resolution_is_suggested_down_to_half_of_the_models_own():
    model = replace(JOB.model, resolution=256)
    job = replace(JOB, config=CONFIG, model=model).changed({**LEAN, "batch_size": 1})
    whole, half = (estimate(job.changed({"dataset.resolution": side})).total for side in (256, 128))
    assert said(job, whole - 1) == "To make it fit, lower dataset.resolution to 192 (now 256)."
    assert said(job, half) == "To make it fit, lower dataset.resolution to 128 (now 256)."
    assert said(job, half // 4) == "Choose a device with more memory."


LORA = replace(JOB, method=LoRA(rank=24, conv_rank=4, train_text_encoder=True,
                                 text_encoder_learning_rate=1e-5))  # fmt: skip
LEAN_LORA = {"precision": "bf16", "optimizer.name": "AdamW8bit", "gradient_checkpointing": True,
             "batch_size": 1, "dataset.resolution": 32}  # fmt: skip


def test_of_a_lora_everything_is_suggested_that_saves_memory():
    texts = [text for text, _ in remedies._remedies(LORA, 0, LORA.method.check)]
    assert texts == [
        "set precision to bf16", "set optimizer.name to AdamW8bit",
        "switch on gradient_checkpointing", "set frozen_weights to 8 bit",
        "set batch_size to 1 (now 4)", "set conv_rank to 0 (now 4)", "lower rank to 16 (now 24)",
        "switch off train_text_encoder", "lower dataset.resolution to 32 (now 64)",
    ]  # fmt: skip
    for text, changed in remedies._remedies(LORA, 0, LORA.method.check):
        assert estimate(changed).total < estimate(LORA).total, text


def test_a_lora_is_made_smaller_until_it_fits():
    job = LORA.changed(LEAN_LORA)
    smallest = replace(job.changed({"frozen_weights": "8 bit"}), method=LoRA())
    assert said(job, estimate(smallest).total) == (
        "To make it fit, set frozen_weights to 8 bit; set conv_rank to 0 (now 4); lower rank to 16 "
        "(now 24); switch off train_text_encoder."
    )


def test_the_rank_of_a_lora_that_is_trained_further_stays(tmp_path):
    method = LoRA(rank=32, start=tmp_path / "a.safetensors")
    assert not list(remedies._ranks(replace(JOB, method=LoRA()), LoRA()))
    job = replace(JOB.changed(LEAN_LORA), method=method)
    texts = [text for text, _ in remedies._settings(job)]
    assert texts == ["set frozen_weights to 8 bit"]


def test_what_is_refused_is_not_suggested():
    def check(config):
        if config.precision != "fp32":
            raise ValueError

    assert "precision" not in said(JOB, estimate(JOB).total - 1, check)


def test_several_processes_are_told_to_split_the_weights():
    several = replace(JOB.changed({"precision": "bf16", "gradient_checkpointing": True}),
                      num_processes=2)  # fmt: skip
    budget = estimate(several.changed({"sharded": True})).total
    assert "switch on sharded" in said(several, budget)
    assert "switch on sharded" not in said(replace(several, num_processes=1), budget)
