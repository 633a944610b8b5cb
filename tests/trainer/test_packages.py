"""A package that is missing or broken, in words that help."""

import math
import sys

import pytest

from trainer import packages


def test_gives_the_module_of_a_package():
    assert packages.load("math", needed_by="A circle", instead="a square") is math


def test_says_how_to_install_what_is_missing_for_this_very_python():
    with pytest.raises(ValueError, match="no-such-package") as caught:
        packages.load("no-such-package", needed_by="The choice", instead="another")
    assert str(caught.value) == (
        "The choice needs the package no-such-package, and it cannot be loaded (No module named "
        f"'no_such_package'). Install it with '\"{sys.executable}\" -m pip install "
        "no-such-package', or choose another."
    )
