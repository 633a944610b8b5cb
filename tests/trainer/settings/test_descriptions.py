"""Descriptions are read from the source of the settings."""

from dataclasses import dataclass, field

import pytest

from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import TrainingConfig
from trainer.settings.descriptions import descriptions
from trainer.settings.effects import Decides, NoEffect, effects


@dataclass
class Inner:
    length: Decides[int] = 1
    """A length
    in metres."""


@dataclass
class Outer:
    """Not the description of a field."""

    width: float = 2.0
    """The width."""
    inner: NoEffect[Inner] = field(default_factory=Inner)
    """What is nested has its own descriptions."""


@dataclass
class Silent:
    first: int = 1
    """The first."""
    second: int = 2


def test_descriptions_are_the_docstrings_below_the_fields():
    assert descriptions(Outer) == {"width": "The width.", "inner.length": "A length in metres."}


def test_a_field_without_a_docstring_is_an_error():
    with pytest.raises(ValueError) as caught:
        descriptions(Silent)
    assert str(caught.value) == (
        "Silent.second has no description. Write a docstring below the field."
    )


@pytest.mark.parametrize("settings", [TrainingConfig, FullFineTune, TextualInversion])
def test_every_setting_has_a_description(settings):
    assert set(descriptions(settings)) == set(effects(settings))


@pytest.mark.parametrize("settings", [TrainingConfig, FullFineTune, TextualInversion])
def test_descriptions_serve_the_command_line_and_the_nodes(settings):
    """They are whole sentences, and name neither flags nor widgets."""
    for name, text in descriptions(settings).items():
        assert text[0].isupper(), name
        assert text.endswith((".", '."')), name
        words = text.lower()
        assert not any(word in words for word in ("--", "widget", "flag", "node")), name
