"""The table of what fits which card."""

from __future__ import annotations

from tests.trainer.planning.test_plan import CONFIG, JOB, MODEL
from trainer.methods.lora import LoRA
from trainer.planning import table
from trainer.planning.cards import SIZES
from trainer.planning.estimate import estimate
from trainer.planning.plan import RUNGS, Plan


def test_there_is_a_row_for_each_card_and_a_column_for_each_case():
    columns = table.cases(CONFIG, MODEL)
    assert [name for name, _ in columns] == [
        "tiny", "+ text encoder", "+ text encoder + class images", "tiny, LoRA"
    ]  # fmt: skip
    lines = list(table.rows(columns, frozenset()))
    assert len(lines) == 2 + len(SIZES)
    assert {line.count("|") for line in lines} == {6}
    assert lines[2].startswith("| 4 GB (3.0 GB) | 0.1 GB: fp32, AdamW, b4 | ")
    assert lines[2].endswith(" GB: fp32 base, AdamW, b4 |")


def test_without_a_model_the_published_ones_are_shown():
    assert [name for name, _ in table.cases(CONFIG, None)] == [
        "Stable Diffusion 1.5", "+ text encoder", "+ text encoder + class images",
        "Stable Diffusion 1.5, LoRA", "Stable Diffusion XL", "Stable Diffusion XL, LoRA",
    ]  # fmt: skip


def test_fewer_photos_are_shown_if_those_asked_for_do_not_fit(monkeypatch):
    asked = []

    def fit(job, budget, rules):
        asked.append(job.config.batch_size)
        if job.config.batch_size > 2:
            raise ValueError
        return Plan(config=job.config, changes={}, estimate=estimate(job), budget=1)

    monkeypatch.setattr(table, "fit", fit)
    monkeypatch.setattr(table, "described", lambda plan, method: f"b{plan.config.batch_size}")
    assert table._cell(JOB, 6, frozenset()) == "b2"
    assert asked == [4, 2]
    assert table._cell(JOB, 6, frozenset({"batch_size"})) == "–"


def test_a_plan_is_described_in_a_few_words():
    job = JOB.changed({"precision": "bf16", **RUNGS[3], "gradient_checkpointing": True,
                       "batch_size": 2, "gradient_accumulation": 2})  # fmt: skip
    found = Plan(config=job.config, changes={}, estimate=estimate(job), budget=1)
    assert table.described(found, job.method).endswith(
        ": 24 bit, AdamW8bit, released, offloaded, b2x2 recomputed"
    )


def test_of_a_lora_the_format_of_the_model_is_shown():
    for changes, shown in (({"precision": "bf16"}, "bf16"), ({"frozen_weights": "8 bit"}, "8 bit")):
        config = CONFIG.replace(changes)
        found = Plan(config=config, changes={}, estimate=estimate(JOB), budget=1)
        assert table.described(found, LoRA()).endswith(f": {shown} base, AdamW, b4")


def test_the_rank_of_loras_can_be_chosen():
    (_, job), *_ = [case for case in table.cases(CONFIG, MODEL, rank=4) if "LoRA" in case[0]]
    assert job.method == LoRA(rank=4)
