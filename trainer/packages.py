"""Import optional packages, with an error that says how to install them."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Any

PACKAGES = {"PIL": "pillow"}
"""Packages that are installed by another name than they are imported by."""


def load(package: str, *, needed_by: str, instead: str) -> Any:
    """Import a package and return its module. If that fails, raises ValueError saying what needs
    the package, how to install it, and what to choose instead. The install command names the
    running Python, since a portable ComfyUI has its own."""
    try:
        return importlib.import_module(package.replace("-", "_"))
    except Exception as error:  # a damaged package raises all sorts
        raise ValueError(
            f"{needed_by} needs the package {package}, but it cannot be loaded ({error}). Install "
            f"it with '\"{sys.executable}\" -m pip install {package}', or choose {instead}."
        ) from error


def explain(error: BaseException) -> str:
    """A line about the package that could not be imported; "" if the error is about something
    else. diffusers imports packages late, and hides their errors in others."""
    if isinstance(error, ImportError) or str(error).startswith("Failed to import "):
        return not_imported(error)
    return ""


def not_imported(error: BaseException) -> str:
    """The same line, for any error that an import has raised."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    module = (isinstance(cause, ImportError) and cause.name) or _imported(cause)
    name = PACKAGES.get(module.split(".")[0], module.split(".")[0])
    reason = " ".join(str(cause).split())
    return (
        f"The package {name} is missing, damaged or does not fit the others ({reason}). Install it "
        f"again with '\"{sys.executable}\" -m pip install --force-reinstall {name}', or remove it "
        "if you do not need it."
    )


def _imported(error: BaseException) -> str:
    """The package whose import raised the error."""
    names = [
        str(frame.f_globals.get("__name__"))
        for frame, _ in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_name == "<module>"
    ]
    return names[-1] if names else "of an import"
