"""Check that the nodes can work here: that ComfyUI and torch are new enough, the required packages
are installed, and no other copy of the pack is loaded. Imports nothing that an old release may
lack."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import inspect
import logging
import re
import sys
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NoReturn

MINIMUM = {"ComfyUI": "0.21.0", "torch": "2.5.0"}
"""The oldest releases that the nodes were tested with. Older releases of torch do not read .ckpt
files as safely."""
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FINISH_ROUTES = ("/dreambooth/finish", "/dreambooth/finish/")
"""Only this pack has the first, so it tells whether a copy of the pack is loaded. The second is
there because aiohttp refuses a path only right after the same path: an older copy, which does not
look for others and is loaded next, would stop ComfyUI."""
NOT_FOR_EVERY_RUN = {"scipy", "pytorch-optimizer", "tyro", "tqdm", "tomli"}
"""Packages that the nodes never use, or only for a choice that then says that they are missing."""
_REQUIREMENT = re.compile(
    r'(?P<name>[\w.-]+)(>=(?P<minimum>[\d.]+))?(; python_version < "(?P<python>[\d.]+)")?'
)


def find_version() -> str | None:
    """The version of the ComfyUI that is running. None: this is not running in ComfyUI."""
    if importlib.util.find_spec("comfyui_version") is None:
        # Releases before 0.3.11 do not contain their version, but have this module.
        return "0.3.10 or older" if importlib.util.find_spec("folder_paths") else None
    from comfyui_version import __version__

    return str(__version__)


def complaint(version: str, of: str = "ComfyUI") -> str:
    """The error message if this version is too old, else ""."""
    if _numbers(version) >= _numbers(MINIMUM[of]):
        return ""
    return (
        f"DreamBooth for ComfyUI needs {of} {MINIMUM[of]} or newer, found {version}. Its nodes are "
        f"not loaded. Update {of}."
    )


def complaint_here() -> str:
    """The error message if the running ComfyUI or its torch is too old, else ""."""
    return complaint(find_version() or "an unknown version") or complaint(
        importlib.metadata.version("torch"), of="torch"
    )


def package_complaint(*, for_every_run: bool = False) -> str:
    """The error message if packages of requirements.txt are missing or too old, else "". With
    `for_every_run`, only those that every run of a node may need."""
    ignored = NOT_FOR_EVERY_RUN if for_every_run else set()
    faults = [_package_fault(line, ignored) for line in _requirements(REQUIREMENTS)]
    if not any(faults):
        return ""
    return (
        f"DreamBooth for ComfyUI needs other packages: {'; '.join(filter(None, faults))}. Install "
        f'them with \'"{sys.executable}" -m pip install -r "{REQUIREMENTS}"\', then restart '
        "ComfyUI."
    )


def find_other_copy() -> Path | None:
    """The folder of the copy of this pack that ComfyUI has loaded already."""
    return next(_loaded_copies(), None)


def _loaded_copies() -> Iterator[Path]:
    from server import PromptServer

    server: Any = getattr(PromptServer, "instance", None)
    for route in server.routes if server else ():
        if getattr(route, "path", None) == FINISH_ROUTES[0]:
            yield Path(inspect.getfile(route.handler)).parents[1]


def refuse_second_copy() -> NoReturn:
    """Raise RuntimeError, whose message ComfyUI logs as one line."""
    raise RuntimeError(
        f"DreamBooth for ComfyUI is installed twice, in '{find_other_copy()}' and in "
        f"'{Path(__file__).parent}'. The nodes of the first are loaded. Remove one of the two "
        "folders, then restart ComfyUI."
    )


async def warn_of_older_copy(_: object) -> None:
    """Log a line if an older copy, which does not look for others, was loaded after this one."""
    first, *others = _loaded_copies()
    for other in others:
        logging.getLogger(__name__).warning(
            "DreamBooth for ComfyUI is installed twice, in '%s' and in '%s'. The nodes of the "
            "second, which is older, are loaded. Remove one of the two folders, then restart "
            "ComfyUI.", first, other,
        )  # fmt: skip


def warn_if_too_old() -> None:
    version = find_version()
    if version and complaint(version):
        logging.getLogger(__name__).warning(complaint(version))


def _requirements(path: Path) -> Iterator[str]:
    """The lines of a requirements file and of the files that it includes, without comments."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("--requirement="):
            yield from _requirements(path.with_name(line.partition("=")[2]))
        elif line.strip() and not line.startswith("#"):
            yield line


def _package_fault(requirement: str, ignored: Set[str]) -> str:
    """Such as "tyro is not installed", or "" if the package is there and new enough."""
    wanted = _REQUIREMENT.fullmatch(requirement)
    assert wanted, requirement
    name, minimum, python = wanted["name"], wanted["minimum"] or "", wanted["python"]
    if name in ignored or (python and sys.version_info[:2] >= _numbers(python)):
        return ""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is not installed"
    if _numbers(version) >= _numbers(minimum):
        return ""
    return f"{name} {version} is too old, {minimum} or newer is needed"


def _numbers(version: str) -> tuple[int, ...]:
    """For example (0, 21, 0) for "0.21.0" and for "v0.21.0rc1"."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])
