"""The commands by name, and what the program does with its arguments.

The flags, their defaults and their help come from the dataclasses in this room, in
`settings/config.py` and in `methods/`."""

from __future__ import annotations

import dataclasses
import logging
import re
from pathlib import Path
from typing import Annotated, Any, Union

import tyro

from .. import packages, processes
from ..console import PlainFormatter, accept_all_characters, open_closed
from ..optimization.lr_schedules import LR_SCHEDULES
from ..optimization.optimizers import OPTIMIZERS
from ..sampling.schedulers import SCHEDULERS
from ..settings.presets import INVERSION_PRESETS, LORA_PRESETS, PRESETS
from ..storage.disk_errors import explained
from .commands import (
    Demo,
    InvertText,
    Priors,
    Runs,
    Sample,
    Train,
    TrainLora,
    require_training,
)
from .conversion_commands import ApplyLora, ExtractLora
from .evaluation_commands import Compare, Score
from .inspect_command import Inspect
from .parsing import parse
from .planning_command import PlanTable
from .settings_file import NO_KEYS, Values, defaults, read_toml, read_values
from .terminal import stopping_between_steps

DESCRIPTION = f"""\
DreamBooth, LoRA and textual inversion for Stable Diffusion. Each command explains its options:
python -m trainer train --help.

Presets of train: {", ".join(PRESETS)}.

Presets of lora: {", ".join(LORA_PRESETS)}.

Presets of textual-inversion: {", ".join(INVERSION_PRESETS)}.

Optimizers: {", ".join(OPTIMIZERS)}.

Learning rate schedules: {", ".join(LR_SCHEDULES)}.

Noise schedulers: {", ".join(SCHEDULERS)}."""
COMMANDS: dict[str, type] = {
    "train": Train,
    "lora": TrainLora,
    "textual-inversion": InvertText,
    "priors": Priors,
    "sample": Sample,
    "compare": Compare,
    "score": Score,
    "extract-lora": ExtractLora,
    "apply-lora": ApplyLora,
    "inspect": Inspect,
    "runs": Runs,
    "plan": PlanTable,
    "demo": Demo,
}

PRESETS_OF = {InvertText: INVERSION_PRESETS, TrainLora: LORA_PRESETS}
"""By command; those of the others are `PRESETS`."""


def main(arguments: list[str]) -> int:
    """Run a command. Return the exit code: 0 if everything requested was done. One of several
    processes does not return, but ends."""
    exit_code = _run(arguments)
    if processes.are_requested():
        processes.end(exit_code)
    return exit_code


def _run(arguments: list[str]) -> int:
    open_closed()
    accept_all_characters()
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if processes.is_follower():
        logging.disable(logging.CRITICAL)  # the leader says all that there is to say
    try:
        with explained():
            command = _parse(arguments)
            require_training(command)
            with stopping_between_steps():
                command.run()
    except KeyboardInterrupt:
        logging.error("Stopped.")
        return 130
    except (
        ValueError, OSError, RuntimeError, ArithmeticError, MemoryError, ImportError
    ) as error:  # fmt: skip
        logging.error("%s", packages.explain(error) or error)
        return 1
    return 0


def _parse(arguments: list[str]) -> Any:
    """The requested command. Flags override the settings file, which overrides the preset, which
    overrides the defaults."""
    commands = []
    for name, command in COMMANDS.items():
        options = {}
        if arguments[:1] == [name]:
            options["default"] = defaults(command, _values(command, arguments))
        commands.append(Annotated[command, tyro.conf.subcommand(name, **options)])
    union: Any = Union[tuple(commands)]  # noqa: UP007
    found = parse(union, arguments, prog="python -m trainer", description=DESCRIPTION)
    if any(field.name == "given" for field in dataclasses.fields(found)):
        return dataclasses.replace(found, given=_given(type(found), arguments))
    return found


def _given(command: type, arguments: list[str]) -> frozenset[str]:
    """The dotted names of the settings in the settings file and among the flags."""
    has_file = any(field.name == "settings" for field in dataclasses.fields(command))
    path = _value_of("--settings", arguments) if has_file else None
    values = read_values(command, read_toml(Path(path)), path) if path else {}
    in_file = {".".join(names[1:]) for names in values if names[0] == "config"}
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    # tyro accepts - for _ and --no-NAME for a switch, also below a heading.
    names = {re.sub(r"(^|\.)no_", r"\1", flag[2:].replace("-", "_")) for flag in flags}
    return frozenset(in_file | names) - {*NO_KEYS}


def _values(command: type, arguments: list[str]) -> Values:
    """The values from the preset and the settings file, which overrides the preset."""
    flags = {field.name for field in dataclasses.fields(command)}
    path = _value_of("--settings", arguments) if "settings" in flags else None
    values = read_values(command, read_toml(Path(path)), path) if path else {}
    preset = _value_of("--preset", arguments) or values.get(("preset",))
    if not preset or "preset" not in flags:
        return values
    presets = PRESETS_OF.get(command, PRESETS)
    if preset not in presets:
        raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}.")
    return read_values(command, presets[preset], preset) | values


def _value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag, before tyro parses the arguments. None: the flag is missing."""
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None
