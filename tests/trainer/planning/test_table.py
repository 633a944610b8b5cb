"""The table of what fits which card."""

from __future__ import annotations

from tests.trainer.planning.test_plan import CONFIG, JOB, MODEL
from trainer.planning import table
from trainer.planning.cards import SIZES
from trainer.planning.estimate import estimate
from trainer.planning.plan import RUNGS, Plan


def test_there_is_a_row_for_each_card_and_a_column_for_each_case():
    columns = table.cases(CONFIG, MODEL)
    assert [name for name, _ in columns] == [
        "tiny", "+ text encoder", "+ text encoder + class images"
    ]  # fmt: skip
    lines = list(table.rows(columns, frozenset()))
    assert len(lines) == 2 + len(SIZES)
    assert {line.count("|") for line in lines} == {5}
    assert lines[2].startswith("| 6 GB (5.1 GB) | 0.1 GB: fp32, AdamW, b4 | ")


def test_without_a_model_the_published_ones_are_shown():
    assert [name for name, _ in table.cases(CONFIG, None)] == [
        "Stable Diffusion 1.5", "+ text encoder", "+ text encoder + class images",
        "Stable Diffusion XL",
    ]  # fmt: skip


def test_fewer_photos_are_shown_if_those_asked_for_do_not_fit(monkeypatch):
    asked = []

    def fit(job, budget, rules):
        asked.append(job.config.batch_size)
        if job.config.batch_size > 2:
            raise ValueError
        return Plan(config=job.config, changes={}, estimate=estimate(job), budget=1)

    monkeypatch.setattr(table, "fit", fit)
    monkeypatch.setattr(table, "described", lambda plan: f"b{plan.config.batch_size}")
    assert table._cell(JOB, 6, frozenset()) == "b2"
    assert asked == [4, 2]
    assert table._cell(JOB, 6, frozenset({"batch_size"})) == "–"


def test_a_plan_is_described_in_a_few_words():
    job = JOB.changed({"precision": "bf16", **RUNGS[3], "gradient_checkpointing": True,
                       "batch_size": 2, "gradient_accumulation": 2})  # fmt: skip
    found = Plan(config=job.config, changes={}, estimate=estimate(job), budget=1)
    assert table.described(found).endswith(
        ": 24 bit, AdamW8bit, released, offloaded, b2x2 recomputed"
    )
