"""Which settings are chosen for how much memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.random_networks import TINY
from trainer.families.shapes import SD15, SDXL, ModelShape, NetworkShape
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.planning import plan
from trainer.planning.cards import usable
from trainer.planning.estimate import estimate
from trainer.planning.job import Job
from trainer.planning.plan import DEFAULTS, NO_MOMENTUM, Rules, candidates, complaint, fit
from trainer.settings.config import DatasetConfig, TrainingConfig

CPU = torch.device("cpu")
PLENTY = 10**12
MODEL = ModelShape(
    "tiny",
    NetworkShape.of("unet", {"attention_head_dim": 8, **TINY["unet"]}),
    NetworkShape.of("vae", {**TINY["vae"], "latent_channels": 4}),
    (NetworkShape.of("text_encoder", TINY["text_encoder"]),),
    resolution=64,
)
CONFIG = TrainingConfig(
    base=Path("unused"), dataset=DatasetConfig(photos=(Path("a"),), prompt="a"), batch_size=4
)
JOB = Job(CONFIG, FullFineTune(), MODEL)
RULES = Rules(device=CPU)


@pytest.fixture(autouse=True)
def _tiny_models_count_as_full_size(monkeypatch):
    monkeypatch.setattr(plan, "FULL_WIDTH", 32)


def chosen(job: Job = JOB, rules: Rules = RULES) -> list[tuple[str, str, bool, bool]]:
    """The rungs in the order of candidates."""
    found = []
    for changes in candidates(job, rules):
        config = job.changed(changes).config
        rung = (
            config.weights, config.optimizer.name, config.gradient_release, config.offload
        )  # fmt: skip
        if rung not in found:
            found.append(rung)
    return found


def test_the_defaults_are_those_of_the_settings():
    assert {name: plan.setting(CONFIG, name) for name in DEFAULTS} == DEFAULTS


def test_with_plenty_of_memory_only_the_precision_changes():
    found = fit(JOB, PLENTY, RULES)
    assert found.changes == {"precision": "bf16"}
    assert found.config == CONFIG.replace({"precision": "bf16"})


def test_rungs_go_from_exact_to_lean():
    assert chosen() == [
        ("fp32", "AdamW", False, False),
        ("fp32", "AdamW", True, False),
        ("24 bit", "AdamW8bit", True, False),
        ("24 bit", "AdamW8bit", True, True),
        ("24 bit", NO_MOMENTUM, True, False),
        ("bf16", "AdamW8bit", True, False),
        ("bf16", NO_MOMENTUM, True, False),
    ]


@pytest.mark.parametrize("method", [LoRA(), TextualInversion(placeholder="<x>", initializer="dog")])
def test_if_the_model_is_frozen_its_weights_are_stored_in_8_bits_last(method):
    found = []
    for changes in candidates(replace(JOB, method=method), replace(RULES, check=method.check)):
        config = JOB.changed(changes).config
        assert (config.precision, config.weights) == ("bf16", "fp32")
        assert (config.gradient_release, config.offload) == (False, False)
        rung = config.optimizer.name, config.frozen_weights
        if rung not in found:
            found.append(rung)
    assert found == [("AdamW", "precision"), ("AdamW8bit", "precision"), ("AdamW8bit", "8 bit")]


def test_trained_weights_never_come_with_8_bits():
    assert {c["frozen_weights"] for c in candidates(JOB, RULES)} == {"precision"}
    job = JOB.changed({"frozen_weights": "8 bit"})
    assert not list(candidates(job, replace(RULES, check=FullFineTune().check)))


@pytest.mark.parametrize(
    ("card", "model", "batch_size", "expected"),
    [
        (4, SD15, 1, {"precision": "bf16", "gradient_checkpointing": True}),
        (6, SD15, 1, {"precision": "bf16"}),
        (8, SDXL, 1, {"precision": "bf16", "gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_loras_of_published_models_fit_small_cards(monkeypatch, card, model, batch_size, expected):
    monkeypatch.setattr(plan, "FULL_WIDTH", 320)
    job = Job(CONFIG.replace({"batch_size": batch_size}), LoRA(), model)
    assert fit(job, usable(card), RULES).changes == expected


def test_the_first_candidate_that_fits_is_taken():
    possible = [JOB.changed(changes) for changes in candidates(JOB, RULES)]
    needs = [estimate(each).total for each in possible]
    for budget in {*needs, PLENTY}:
        first = next(job for job, need in zip(possible, needs, strict=True) if need <= budget)
        found = fit(JOB, budget, RULES)
        assert found.config == first.config
        assert found.estimate.total <= budget


def test_photos_per_step_stay():
    for changes in candidates(JOB, RULES):
        config = JOB.changed(changes).config
        assert config.batch_size * config.gradient_accumulation == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", "fp16"),
        ("weights", "24 bit"),
        ("optimizer.name", "Lion"),
        ("gradient_checkpointing", True),
        ("gradient_release", True),
        ("gradient_accumulation", 2),
    ],
)
def test_what_the_user_set_stays(name, value):
    job = JOB.changed({name: value})
    possible = list(candidates(job, RULES))
    assert possible
    for changes in possible:
        assert plan.setting(job.changed(changes).config, name) == value


def test_what_the_user_named_stays_even_at_its_default():
    rules = Rules(device=CPU, given=frozenset({"weights", "optimizer.name", "batch_size"}))
    assert chosen(rules=rules) == [
        ("fp32", "AdamW", False, False), ("fp32", "AdamW", True, False),
        ("fp32", "AdamW", True, True),
    ]  # fmt: skip
    assert all("batch_size" not in changes for changes in candidates(JOB, rules))


def test_a_norm_that_the_user_set_is_applied():
    job = JOB.changed({"optimizer.max_grad_norm": 0.5})
    assert chosen(job) == [("fp32", "AdamW", False, False)]
    job = JOB.changed({"optimizer.max_grad_norm": 0.0})
    assert len(chosen(job)) == 7


def test_prodigy_needs_all_gradients():
    assert chosen(JOB.changed({"optimizer.name": "Prodigy"})) == [("fp32", "Prodigy", False, False)]


def test_older_cards_compute_in_fp16_and_gather_gradients(monkeypatch):
    monkeypatch.setattr(plan.precision, "computes_in_bf16", lambda device: False)
    assert chosen() == [
        ("fp32", "AdamW", False, False), ("fp32", "AdamW8bit", False, False),
    ]  # fmt: skip
    assert {changes["precision"] for changes in candidates(JOB, RULES)} == {"fp16"}


def test_optimizers_whose_package_is_missing_are_left_out(monkeypatch):
    monkeypatch.setattr(plan, "find_spec", lambda name: None if name == "bitsandbytes" else 1)
    assert {optimizer for _, optimizer, _, _ in chosen()} == {"AdamW", NO_MOMENTUM}


def test_settings_that_the_method_refuses_are_left_out():
    def check(config):
        if config.gradient_release:
            raise ValueError

    assert chosen(rules=replace(RULES, check=check)) == [("fp32", "AdamW", False, False)]


def test_an_existing_run_is_preferred_if_it_fits():
    possible = [JOB.changed(changes).config for changes in candidates(JOB, RULES)]
    existing = possible[5]
    rules = replace(RULES, status=lambda config: "unfinished" if config == existing else "")
    assert fit(JOB, PLENTY, rules).config == existing
    need = estimate(replace(JOB, config=existing)).total
    assert fit(JOB, need - 1, rules).config != existing
    as_written = replace(RULES, status=lambda config: "unfinished" if config == CONFIG else "")
    assert fit(JOB, PLENTY, as_written).changes == {}


def test_small_models_stay_as_they_are_if_they_fit(monkeypatch):
    monkeypatch.setattr(plan, "FULL_WIDTH", 320)
    assert fit(JOB, PLENTY, RULES).changes == {}
    assert fit(JOB, estimate(JOB).total - 1, RULES).changes != {}


def test_the_plan_says_what_was_chosen_and_what_it_costs():
    job = JOB.changed({"gradient_checkpointing": True, "weights": "24 bit"})
    found = fit(job, PLENTY, RULES)
    assert str(found) == (
        f"Memory: {found.estimate}, of 1000.0 GB usable. Chosen so that it fits: precision bf16 "
        "(faster, with results that differ by rounding)."
    )
    lean = next(c for c in candidates(JOB, RULES) if c["offload"] and c["gradient_checkpointing"])
    text = str(plan._plan(JOB, lean, PLENTY))
    assert text.endswith(
        "weights 24 bit (trains like fp32); optimizer.name AdamW8bit (trains like AdamW); "
        "gradient_release on (gradients are not clipped, so max_grad_norm has no effect); offload "
        "on (steps take longer); gradient_checkpointing on (about a quarter slower)."
    )


def test_if_nothing_fits_the_error_says_what_is_needed():
    with pytest.raises(ValueError) as caught:
        fit(JOB, 1000, RULES)
    least = min(estimate(JOB.changed(changes)).total for changes in candidates(JOB, RULES))
    assert str(caught.value) == (
        f"This run needs {least / 1e9:.1f} GB on the device even with the leanest settings, but "
        "0.0 GB are usable. Choose a device with more memory."
    )


def test_settings_that_do_not_fit_are_complained_about():
    need = estimate(JOB)
    assert complaint(JOB, need.total, RULES) == ""
    assert complaint(JOB, need.total - 1, RULES) == (
        f"These settings need {need}, but {need.total / 1e9:.1f} GB are usable, so memory will "
        "probably run out. To make it fit, set precision to bf16, or set optimizer.name to "
        "AdamW8bit."
    )


def test_the_rungs_in_the_table_need_what_it_says():
    job = Job(CONFIG.replace({"batch_size": 1, "gradient_checkpointing": True}), FullFineTune(),
              SD15)  # fmt: skip
    for line, rung in zip(plan.__doc__.splitlines()[6:], plan.RUNGS, strict=False):
        found = estimate(job.changed({"precision": "bf16", **rung}))
        assert f"| {found.total / 1e9:.1f} |" in line, (line, found)


def test_several_processes_split_the_weights_before_anything_else_changes():
    several = replace(JOB, num_processes=2)
    rules = replace(RULES, num_processes=2)
    found = [several.changed(each).config for each in candidates(several, rules)]
    split = [config for config in found if config.sharded]
    assert [config.weights for config in split] == ["fp32"] * len(split)
    first = found.index(split[0])
    assert all(c.optimizer.name == "AdamW" and not c.gradient_release for c in found[:first])
    assert found[first + len(split)].gradient_release
    assert not any(JOB.changed(each).config.sharded for each in candidates(JOB, RULES))
    kept = replace(rules, given=frozenset({"sharded"}))
    assert not any(several.changed(each).config.sharded for each in candidates(several, kept))
