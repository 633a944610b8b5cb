"""The installed versions of the libraries that affect a run's result."""

from __future__ import annotations

import importlib.metadata


def versions() -> dict[str, str]:
    """Return the installed version of each library, by package name."""
    found = {}
    for package in ("torch", "diffusers", "transformers", "safetensors"):
        found[package] = importlib.metadata.version(package)
    return found
