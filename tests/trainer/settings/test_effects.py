"""Every setting declares whether it affects a run's result."""

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
def test_every_setting_declares_its_effect(settings):
    assert effects(settings)  # raises if a setting declares none


def test_all_methods_are_found():
    names = {method.__name__ for method in all_methods()}
    assert names == {"FullFineTune", "LoRA", "TextualInversion"}


def test_a_setting_without_an_effect_is_named():
    @dataclasses.dataclass(frozen=True)
    class Added(SamplingConfig):
        eta: float = 0.0

    @dataclasses.dataclass
    class Around:
        sampling: Added

    with pytest.raises(TypeError) as caught:
        effects(Around)
    assert str(caught.value) == (
        "Added.eta does not declare whether it affects a run's result. Use a type from "
        "trainer/settings/effects.py, such as Decides[int]."
    )


def test_the_effect_of_nested_settings_applies_to_all_of_them():
    """Including those that declare none or another."""

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
