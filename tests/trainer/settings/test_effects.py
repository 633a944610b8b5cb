"""Every setting says whether it decides a run's result."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

from trainer import methods
from trainer.settings.config import SamplingConfig, TrainingConfig
from trainer.settings.effects import Decides, Effect, NoEffect, effects


def all_methods() -> list[type]:
    modules = [
        importlib.import_module(f"{methods.__name__}.{module.name}")
        for module in pkgutil.iter_modules(methods.__path__)
    ]
    return [
        found
        for module in modules
        for _, found in inspect.getmembers(module, dataclasses.is_dataclass)
        if hasattr(found, "attach") and found.__module__ == module.__name__
    ]


@pytest.mark.parametrize("settings", [TrainingConfig, *all_methods()])
def test_every_setting_says_what_it_decides(settings):
    assert effects(settings)  # it would raise for one that says nothing


def test_both_methods_are_looked_at():
    assert {method.__name__ for method in all_methods()} == {"FullFineTune", "TextualInversion"}


def test_a_setting_that_says_nothing_is_named():
    @dataclasses.dataclass(frozen=True)
    class Added(SamplingConfig):
        eta: float = 0.0

    @dataclasses.dataclass
    class Around:
        sampling: Added

    with pytest.raises(TypeError) as caught:
        effects(Around)
    assert str(caught.value) == (
        "Added.eta does not say whether it decides a run's result. Write its type as one of "
        "trainer/settings/effects.py, such as Decides[int]."
    )


def test_what_nested_settings_say_covers_all_below():
    """Even one that says nothing itself."""

    @dataclasses.dataclass
    class Inner:
        silent: int = 0
        loud: Decides[int] = 0

    @dataclasses.dataclass
    class Outer:
        sampling: SamplingConfig
        idle: NoEffect[Inner]
        busy: Decides[Inner]

    found = effects(Outer, "a.")
    assert found["a.sampling.steps"] is Effect.VALUE
    assert found["a.sampling.batch_size"] is Effect.ROUNDING
    assert (found["a.idle.silent"], found["a.idle.loud"]) == (Effect.NONE, Effect.NONE)
    assert (found["a.busy.silent"], found["a.busy.loud"]) == (Effect.VALUE, Effect.VALUE)
