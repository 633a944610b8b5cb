"""The releases of the libraries that compute a result."""

from __future__ import annotations

import importlib.metadata


def versions() -> dict[str, str]:
    """The installed release of each, by package name."""
    found = {}
    for package in ("torch", "diffusers", "transformers", "safetensors"):
        found[package] = importlib.metadata.version(package)
    return found
