"""settings.toml in a run's folder: the same run elsewhere, by the command line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..methods.base import Method
from ..settings.config import TrainingConfig
from ..settings.values import RELATIVE_TO
from ..storage import json_files

SETTINGS = "settings.toml"
COMMANDS = {"FullFineTune": "train", "LoRA": "lora", "TextualInversion": "textual-inversion"}
"""Of the command line, by method."""
COMMENT = """\
# The settings of this run. To make it on another computer, copy this file and the files and folders
# that are named below to it, so that they lie in the same way to each other. Then run there, in the
# folder of ComfyUI-DreamBooth,
#
#     python -m trainer {command} --settings settings.toml
#
# with the path of this file; on a computer with several GPUs,
#
#     torchrun --nproc-per-node 2 -m trainer {command} --settings settings.toml
#
# Copy the run's folder and the finished files back to the same places: the run is found, and not
# made again.
"""


def write(folder: Path, config: TrainingConfig, method: Method) -> None:
    """Write the file into a run's folder, which is in the folder of all runs."""
    settings = {"runs": folder.parent, "vram": "off", **asdict(config), "method": asdict(method)}
    root = _common_folder(_paths(settings))
    comment = COMMENT.format(command=COMMANDS[type(method).__name__])
    start = {RELATIVE_TO: Path(os.path.relpath(root, folder)).as_posix()} if root else {}
    lines = _lines({**start, **settings}, root)
    json_files.write_text(folder / SETTINGS, f"{comment}\n{''.join(lines)}")


def _common_folder(paths: Iterable[Path]) -> Path | None:
    """The folder that contains all of them. None: they are on several drives of Windows."""
    try:
        return Path(os.path.commonpath([path.absolute().parent for path in paths]))
    except ValueError:
        return None


def _paths(value: Any) -> Iterator[Path]:
    """All paths in nested values."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(each)


def _lines(values: Mapping[str, Any], root: Path | None, heading: str = "") -> Iterator[str]:
    """TOML of nested values: first those at the top, because headings have no end."""
    below = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    for name in (name for name in values if name not in below):
        yield f"{name} = {_shown(values[name], root)}\n"
    for name, value in below.items():
        yield f"\n[{heading}{name}]\n"
        yield from _lines(value, root, f"{heading}{name}.")


def _shown(value: Any, root: Path | None) -> str:
    """A value in TOML, which has no null. Paths are relative to `root`."""
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(each, root) for each in value)}]"
    if isinstance(value, Path):
        path = value.absolute()
        value = (path.relative_to(root) if root else path).as_posix()
    if value is None:
        value = str(None)
    # JSON's texts, numbers, true and false are also TOML's, but for this one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
