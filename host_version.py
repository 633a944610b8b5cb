"""Check that ComfyUI, torch and diffusers are new enough for the nodes. Imports nothing that an
old release may lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import re
import sys
from pathlib import Path

MINIMUM = {"ComfyUI": "0.21.0", "torch": "2.5.0", "diffusers": "0.32.0"}
"""The oldest releases that the nodes were tested with. Older releases of torch do not read .ckpt
files as safely."""
DIFFUSERS_REQUIREMENTS = Path(__file__).with_name("requirements-diffusers.txt")


def find_version() -> str | None:
    """The version of the ComfyUI that is running. None: this is not running in ComfyUI."""
    if importlib.util.find_spec("comfyui_version") is None:
        # Releases before 0.3.11 do not contain their version, but have this module.
        return "0.3.10 or older" if importlib.util.find_spec("folder_paths") else None
    from comfyui_version import __version__

    return str(__version__)


def complaint(version: str, of: str = "ComfyUI", advice: str = "") -> str:
    """The error message if this version is too old, else ""."""
    if _numbers(version) >= _numbers(MINIMUM[of]):
        return ""
    return (
        f"DreamBooth for ComfyUI needs {of} {MINIMUM[of]} or newer, found {version}. Its nodes are "
        f"not loaded. {advice or f'Update {of}.'}"
    )


def complaint_here() -> str:
    """The error message if the running ComfyUI or one of its packages is too old, else ""."""
    return (
        complaint(find_version() or "an unknown version")
        or complaint(importlib.metadata.version("torch"), of="torch")
        or complaint(_diffusers_version(), of="diffusers", advice=_how_to_install_diffusers())
    )


def warn_if_too_old() -> None:
    version = find_version()
    if version and complaint(version):
        logging.getLogger(__name__).warning(complaint(version))


def _diffusers_version() -> str:
    """ "none" if it is not installed: some ways of installing a pack skip its requirements."""
    try:
        return importlib.metadata.version("diffusers")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def _how_to_install_diffusers() -> str:
    return f'Install it with \'"{sys.executable}" -m pip install -r "{DIFFUSERS_REQUIREMENTS}"\'.'


def _numbers(version: str) -> tuple[int, ...]:
    """For example (0, 21, 0) for "0.21.0" and for "v0.21.0rc1"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
