"""Which ComfyUI and which torch the nodes need, told in one line where they are too old. Imports
nothing that an old one might lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re

MINIMUM = {"ComfyUI": "0.21.0", "torch": "2.5.0"}
"""The oldest releases that the nodes were tried with; torch before that cannot read .ckpt files as
safely."""


def find_version() -> str | None:
    """The version of the ComfyUI this runs in; None outside of one."""
    if importlib.util.find_spec("comfyui_version") is None:
        # Releases before 0.3.11 do not tell their version, but have this module.
        return "0.3.10 or older" if importlib.util.find_spec("folder_paths") else None
    from comfyui_version import __version__

    return str(__version__)


def complaint(version: str, of: str = "ComfyUI") -> str:
    """What is wrong with this version; "" if nothing."""
    if _numbers(version) >= _numbers(MINIMUM[of]):
        return ""
    return (
        f"DreamBooth for ComfyUI needs {of} {MINIMUM[of]} or newer, found {version}. Its nodes are "
        f"not loaded. Update {of}."
    )


def complaint_here() -> str:
    """What is wrong with the ComfyUI that this runs in, or with its torch; "" if nothing."""
    found = complaint(find_version() or "an unknown version")
    return found or complaint(importlib.metadata.version("torch"), of="torch")


def warn_if_too_old() -> None:
    version = find_version()
    if version and complaint(version):
        logging.getLogger(__name__).warning(complaint(version))


def _numbers(version: str) -> tuple[int, ...]:
    """ "0.21.0" and "v0.21.0rc1" as (0, 21, 0)."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
