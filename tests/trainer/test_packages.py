"""Importing optional packages, and the error for a missing one."""

import math
import sys

import pytest

from trainer import packages


def test_returns_the_imported_module():
    assert packages.load("math", needed_by="A circle", instead="a square") is math


def test_says_how_to_install_a_missing_package_for_the_running_python():
    with pytest.raises(ValueError, match="no-such-package") as caught:
        packages.load("no-such-package", needed_by="The choice", instead="another")
    assert str(caught.value) == (
        "The choice needs the package no-such-package, but it cannot be loaded (No module named "
        f"'no_such_package'). Install it with '\"{sys.executable}\" -m pip install "
        "no-such-package', or choose another."
    )
