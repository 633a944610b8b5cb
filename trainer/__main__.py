"""The command line: `python -m trainer train | textual-inversion | priors | sample | compare |
score | runs | demo`.

Its flags, their defaults and their help are the dataclasses' of `commands.py` and `config.py`."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from .cli.commands import Demo, InvertText, Priors, Runs, Sample, Train
from .cli.evaluation_commands import Compare, Score
from .cli.settings_file import Values, defaults, read_toml, read_values
from .cli.terminal import stopping_between_steps
from .optimization.lr_schedules import LR_SCHEDULES
from .optimization.optimizers import OPTIMIZERS
from .sampling.schedulers import SCHEDULERS
from .settings.presets import INVERSION_PRESETS, PRESETS

MENUS = (
    f"Presets: {', '.join(PRESETS)}; of textual inversion: {', '.join(INVERSION_PRESETS)}. "
    f"Optimizers: {', '.join(OPTIMIZERS)}. "
    f"Learning-rate schedules: {', '.join(LR_SCHEDULES)}. Schedulers: {', '.join(SCHEDULERS)}."
)
COMMANDS: dict[str, type] = {
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
        command = _parse(arguments)
        with stopping_between_steps():
            command.run()
    except KeyboardInterrupt:
        logging.error("Stopped.")
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        logging.error("%s", error)
        return 1
    return 0


def _parse(arguments: list[str]) -> Any:
    """The command that is asked for: flags over the settings file over the preset over defaults."""
    commands = []
    for name, command in COMMANDS.items():
        given = {}
        if arguments[:1] == [name]:
            given["default"] = defaults(command, _values(command, arguments))
        commands.append(Annotated[command, tyro.conf.subcommand(name, **given)])
    any_of_them: Any = Union[tuple(commands)]  # noqa: UP007
    return tyro.cli(any_of_them, args=arguments, prog="python -m trainer", description=MENUS)


def _values(command: type, arguments: list[str]) -> Values:
    """What the preset and the settings file say of a command, the file over the preset."""
    flags = {field.name for field in dataclasses.fields(command)}
    path = _value_of("--settings", arguments) if "settings" in flags else None
    values = read_values(command, read_toml(Path(path)), path) if path else {}
    preset = _value_of("--preset", arguments) or values.get(("preset",))
    if not preset or "preset" not in flags:
        return values
    presets = INVERSION_PRESETS if command is InvertText else PRESETS
    if preset not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}.")
    return read_values(command, presets[preset], preset) | values


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
