"""Import optional packages, with an error that says how to install them."""

from __future__ import annotations

import importlib
import sys
from typing import Any


def load(package: str, *, needed_by: str, instead: str) -> Any:
    """Import a package and return its module. If that fails, raises ValueError saying what needs
    the package, how to install it, and what to choose instead. The install command names the
    running Python, since a portable ComfyUI has its own."""
    try:
        return importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ValueError(
            f"{needed_by} needs the package {package}, but it cannot be loaded ({error}). Install "
            f"it with '\"{sys.executable}\" -m pip install {package}', or choose {instead}."
        ) from error
