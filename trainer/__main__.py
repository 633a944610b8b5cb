"""The command line: `python -m trainer train | textual-inversion | priors | sample | compare |
score | runs | demo`.

Its flags, their defaults and their help are the dataclasses' of `commands.py` and `config.py`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tyro

from .commands import Demo, InvertText, Priors, Runs, Sample, Train, flat
from .judging import Compare, Score
from .lr_schedules import LR_SCHEDULES
from .optimizers import OPTIMIZERS
from .presets import INVERSION_PRESETS, PRESETS
from .schedulers import SCHEDULERS
from .terminal import stopping_between_steps

MENUS = (
    f"Presets: {', '.join(PRESETS)}; of textual inversion: {', '.join(INVERSION_PRESETS)}. "
    f"Optimizers: {', '.join(OPTIMIZERS)}. "
    f"Learning-rate schedules: {', '.join(LR_SCHEDULES)}. Schedulers: {', '.join(SCHEDULERS)}."
)
COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "textual-inversion": InvertText,
    "priors": Priors,
    "sample": Sample,
    "compare": Compare,
    "score": Score,
    "runs": Runs,
    "demo": Demo,
}


def main(arguments: list[str]) -> int:
    """The exit code: 0 only if everything asked for was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments = [*arguments[:1], *_preset_flags(arguments), *arguments[1:]]
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=arguments, prog="python -m trainer", description=MENUS
        )
        with stopping_between_steps():
            command.run()
    except KeyboardInterrupt:
        logging.error("Stopped.")
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        logging.error("%s", error)
        return 1
    return 0


def _preset_flags(arguments: list[str]) -> Iterator[str]:
    """The preset's and the settings file's values as flags, to stand before the user's own."""
    preset, settings = _value_of("--preset", arguments), _value_of("--settings", arguments)
    if preset:
        presets = INVERSION_PRESETS if arguments[0] == "textual-inversion" else PRESETS
        if preset not in presets:
            raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}.")
        yield from _flags(presets[preset])
    if settings:
        yield from _flags(_read_toml(Path(settings)))


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}. Correct that line.") from error


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def _flags(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in flat(values):
        prefix, _, last = name.replace("_", "-").rpartition(".")
        prefix = f"--{prefix}." if prefix else "--"
        if isinstance(value, bool):
            yield prefix + ("" if value else "no-") + last
        else:
            yield prefix + last
            yield from map(str, value if isinstance(value, list | tuple) else [value])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
