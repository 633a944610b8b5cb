"""Packages that some choices need and that may be missing, or fail to load."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def load(package: str, *, needed_by: str, instead: str) -> Any:
    """The package's module. ValueError tells who needs it, how it is installed for the Python that
    runs this (a portable ComfyUI has one of its own), and what to choose instead."""
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ValueError(
            f"{needed_by} needs the package {package}, and it cannot be loaded ({error}). Install "
            f"it with '\"{sys.executable}\" -m pip install {package}', or choose {instead}."
        ) from error
