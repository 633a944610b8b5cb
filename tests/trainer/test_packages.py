"""Importing optional packages, and the error for a missing one."""

import importlib
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


def import_late(package: str) -> None:
    """Import a package as diffusers does."""
    try:
        importlib.import_module(package)
    except Exception as cause:
        raise RuntimeError("Failed to import diffusers.models.unet because of x") from cause


@pytest.mark.parametrize("error", ["OSError", "RuntimeError", "AttributeError", "ImportError"])
def test_a_damaged_package_is_reported_like_a_missing_one(tmp_path, monkeypatch, error):
    (tmp_path / "damaged_package.py").write_text(f"raise {error}('no such library: x.so')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as caught:
        packages.load("damaged-package", needed_by="The choice", instead="another")
    assert str(caught.value).startswith(
        "The choice needs the package damaged-package, but it cannot be loaded (no such library: "
        "x.so). Install it with"
    )
    # diffusers hides such errors in others.
    with pytest.raises(RuntimeError) as hidden:
        import_late("damaged_package")
    assert packages.explain(hidden.value) == (
        "The package damaged_package is missing, damaged or does not fit the others (no such "
        f'library: x.so). Install it again with \'"{sys.executable}" -m pip install '
        "--force-reinstall damaged_package', or remove it if you do not need it."
    )


def test_errors_about_something_else_are_not_explained():
    assert packages.explain(RuntimeError("Out of memory")) == ""
    missing = packages.explain(
        ModuleNotFoundError("No module named 'tokenizers'", name="tokenizers")
    )
    assert missing.startswith("The package tokenizers is missing, damaged or")
