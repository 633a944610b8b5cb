"""When a run's settings are chosen, and what is told about it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from trainer.families.shapes import read_shape
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.planning import choosing, counting, plan
from trainer.planning.choosing import planned
from trainer.planning.estimate import estimate
from trainer.planning.job import Job
from trainer.planning.plan import Rules

CPU = torch.device("cpu")


class Watching(Observer):
    def __init__(self) -> None:
        self.plans: list[str] = []

    def on_plan(self, text: str) -> None:
        self.plans.append(text)


@pytest.fixture(autouse=True)
def _tiny_models_count_as_full_size(monkeypatch):
    monkeypatch.setattr(plan, "FULL_WIDTH", 32)


@pytest.fixture
def config(one_photo_config):
    return replace(one_photo_config, batch_size=2)


@pytest.fixture
def limit(monkeypatch):
    """Sets the bytes that count as usable."""

    def set_limit(num_bytes: int) -> None:
        monkeypatch.setattr(choosing, "budget", lambda vram, device: num_bytes)

    return set_limit


def job_of(config) -> Job:
    return Job(config, FullFineTune(), read_shape(config.base, config.model_options), on_cuda=False)


@pytest.mark.parametrize("vram", ["off", "auto"])
def test_without_a_limit_settings_stay(config, vram):
    watching = Watching()
    found = planned(config, FullFineTune(), vram, Rules(device=CPU), watching)
    assert found is config
    assert watching.plans == []


def test_the_plan_is_logged_and_reported(config, caplog):
    caplog.set_level(logging.INFO)
    watching = Watching()
    found = planned(config, FullFineTune(), "6", Rules(device=CPU), watching)
    assert found == config.replace({"precision": "bf16"})
    assert watching.plans == caplog.messages
    text = str(estimate(job_of(found)))
    assert watching.plans == [
        f"Memory: {text}, of 5.1 GB usable. Chosen so that it fits: precision bf16 (faster, with "
        "results that differ by rounding)."
    ]


def test_a_finished_run_is_found_whatever_it_needs(config, limit):
    limit(1)
    lean = config.replace({"precision": "bf16", "gradient_release": True})
    rules = Rules(device=CPU, status=lambda other: "finished" if other == lean else "")
    assert planned(config, FullFineTune(), "auto", rules, Observer()) == lean
    with pytest.raises(ValueError, match="^This run needs "):
        planned(config, FullFineTune(), "auto", Rules(device=CPU), Observer())


def test_on_cuda_settings_that_do_not_fit_are_warned_about(config, monkeypatch, caplog):
    rules = Rules(device=torch.device("cuda"))
    need = estimate(replace(job_of(config), on_cuda=True)).total
    monkeypatch.setattr(choosing, "free", lambda device: need)
    assert planned(config, FullFineTune(), "off", rules, Observer()) is config
    assert caplog.messages == []
    monkeypatch.setattr(choosing, "free", lambda device: need - 1)
    assert planned(config, FullFineTune(), "off", rules, Observer()) is config
    assert [text.split(",")[0] for text in caplog.messages] == [
        f"These settings need {estimate(replace(job_of(config), on_cuda=True))}".split(",")[0]
    ]


def test_a_run_that_cannot_be_counted_starts_as_it_is(config, monkeypatch, caplog):
    def fail(each):
        raise TypeError("no such operator")

    monkeypatch.setattr(counting, "_count", fail)
    counting.count.cache_clear()
    assert planned(config, FullFineTune(), "8", Rules(device=CPU), Observer()) is config
    assert caplog.messages == [
        "How much memory the run needs could not be counted (TypeError: no such operator), so no "
        "settings were chosen for it."
    ]
