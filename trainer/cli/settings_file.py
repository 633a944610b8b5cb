"""Turns a preset and a TOML settings file into the defaults of a command. Flags override them."""

from __future__ import annotations

import codecs
import dataclasses
import datetime
import json
import os
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from .. import toy
from ..settings.effects import default_of
from ..settings.values import RELATIVE_TO
from ..storage.disk_errors import naming

NO_KEYS = ("settings",)
"""Flags that cannot be set in a settings file."""
TEXT = (str, int, float, datetime.date, datetime.time)
"""TOML types accepted as text, so that `name = 2024` needs no quotation marks."""
TYPE_NAMES: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
}
"""What messages call one value and several values of a type."""
SAVE_IN_UTF8 = "Save it again in the encoding UTF-8, which text editors offer under Save As."
SINGLE_QUOTES = (
    "In double quotes a backslash and the next letter stand for another character. Write paths in "
    "single quotes"
)
CURLY_QUOTES = set("“”„‘’")

Values = dict[tuple[str, ...], Any]
"""Values by their path of field names from the command, such as ("config", "prior", "weight")."""


class _Key(NamedTuple):
    path: tuple[str, ...]
    """Field names from the command."""
    kind: Any
    """The type of the value."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file in UTF-8, with or without a byte order mark. Raises ValueError if
    it is not that, OSError if it cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    text = _text_of(path)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(_explain(path, text.split("\n"), str(error))) from error
    except (ValueError, RecursionError) as error:  # such as a number of 5000 digits
        raise ValueError(f"'{path}' cannot be read as settings: {error}.") from error


def _text_of(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"'{path}' is a folder, not a settings file. Name a TOML file in it.")
    if not path.exists():
        raise FileNotFoundError(f"There is no settings file '{path}'. Name an existing TOML file.")
    with naming(path):
        content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise ValueError(f"'{path}' is not in UTF-8, but seems to be in UTF-16. {SAVE_IN_UTF8}")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise ValueError(f"Line {number} of '{path}' is not in UTF-8. {SAVE_IN_UTF8}") from error


def _explain(path: Path, lines: Sequence[str], error: str) -> str:
    """What is wrong in a TOML file with these lines, from tomllib's message, and what to write."""
    reason, _, place = error.removesuffix(")").rpartition(" (at ")
    number = re.match(r"line (\d+)", place)
    line = lines[int(number[1]) - 1].strip() if number else ""
    if '"' in line and "\\" in line:
        advice = f"{SINGLE_QUOTES}: {line}".replace('"', "'")
    elif CURLY_QUOTES & set(line):
        advice = 'Write straight quotation marks: "text".'
    elif reason == "Invalid value":
        advice = "Texts need quotation marks; true and false are written in lower case."
    else:
        advice = "Correct that line."
    return f"'{path}' is not valid TOML at {place}: {reason}. {advice}"


def read_values(command: type, settings: Mapping[str, Any], source: str) -> Values:
    """Values for the fields of a command from nested settings, which are named like its flags.
    Raises ValueError, naming the source, for an unknown key and for a value of the wrong type."""
    keys = dict(_keys(command))
    values: Values = {}
    settings = dict(settings)
    start = settings.pop(RELATIVE_TO, None)
    for name, value in _entries(settings, keys, source):
        path, kind = keys[name]
        try:
            values[path] = _convert(value, kind)
        except ValueError:
            shown = _shown(value)
            expected = _describe(kind)
            raise ValueError(f"'{source}': {name} must be {expected}, got {shown}.") from None
        _refuse_escapes_in_paths(name, values[path], source)
    if start is not None:
        folder = Path(source).absolute().parent / str(start)
        return {path: _in_folder(value, folder) for path, value in values.items()}
    return values


def _in_folder(value: Any, folder: Path) -> Any:
    """Paths that are relative to a folder, as absolute ones."""
    if isinstance(value, tuple):
        return tuple(_in_folder(each, folder) for each in value)
    if isinstance(value, Path) and value != Path(toy.NAME):
        return Path(os.path.normpath(folder / value))
    return value


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _refuse_escapes_in_paths(name: str, value: Any, source: str) -> None:
    """Raises ValueError for "C:\\temp\\new" in double quotes, where TOML reads a tab and a line
    break."""
    for path in value if isinstance(value, tuple) else (value,):
        if isinstance(path, Path) and any(ord(char) < ord(" ") for char in str(path)):
            raise ValueError(
                f"'{source}': {name} contains a control character: {_shown(str(path))}. "
                f"{SINGLE_QUOTES}."
            )


def defaults(settings: type, values: Values, path: tuple[str, ...] = (), base: Any = None) -> Any:
    """An unchecked instance of a dataclass with these values. The others come from `base`, or are
    the dataclass's own defaults; `tyro.MISSING` marks required ones."""
    found, hints = {}, get_type_hints(settings)
    for field in dataclasses.fields(settings):
        here, kind = (*path, field.name), hints[field.name]
        value = default_of(field) if base is None else getattr(base, field.name)
        if dataclasses.is_dataclass(kind):
            nested = None if value is dataclasses.MISSING else value
            value = defaults(kind, values, here, nested)  # type: ignore[arg-type]
        elif value is dataclasses.MISSING:
            value = tyro.MISSING
        found[field.name] = values.get(here, value)
    return unchecked(settings, **found)


def unchecked(settings: type, /, **values: Any) -> Any:
    """An instance of a dataclass with these values, made without calling `__post_init__`."""
    made: Any = object.__new__(settings)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def is_unnamed(hint: Any) -> bool:
    """Whether the flags of nested settings omit the name of the field with this type hint:
    `--steps` rather than `--config.steps`."""
    return any(getattr(mark, "name", None) == "" for mark in getattr(hint, "__metadata__", ()))


def _keys(
    settings: type, path: tuple[str, ...] = (), heading: str = ""
) -> Iterator[tuple[str, _Key]]:
    """The dotted name of every key of a settings file, and what it sets."""
    for name, hint in get_type_hints(settings, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if tyro.conf.Fixed in marks or (*path, name) == NO_KEYS:
            continue
        if dataclasses.is_dataclass(kind):
            below = heading if is_unnamed(hint) else f"{heading}{name}."
            yield from _keys(kind, (*path, name), below)  # type: ignore[arg-type]
        else:
            yield heading + name, _Key((*path, name), kind)


def _entries(
    settings: Mapping[str, Any], keys: Mapping[str, _Key], source: str, heading: str = ""
) -> Iterator[tuple[str, Any]]:
    """The dotted name and value of every setting. Raises ValueError for an unknown key."""
    for name, value in settings.items():
        key = heading + name.replace("-", "_")
        is_heading = any(other.startswith(f"{key}.") for other in keys)
        if is_heading and isinstance(value, Mapping):
            yield from _entries(value, keys, source, f"{key}.")
        elif key in keys:
            yield key, value
        elif is_heading:
            below = ", ".join(_names_below(keys, f"{key}."))
            raise ValueError(
                f"'{source}': {key} is a heading, not a setting, but got {_shown(value)}. Write "
                f"[{key}] on a line of its own, and below it its settings: {below}."
            )
        else:
            raise ValueError(_unknown(key, keys, source, heading))


def _unknown(key: str, keys: Mapping[str, _Key], source: str, heading: str) -> str:
    where = f"Known keys under [{heading[:-1]}]" if heading else "Known keys"
    return (
        f"'{source}' contains the key '{key}', which this command does not know. {where}: "
        f"{', '.join(_names_below(keys, heading))}."
    )


def _names_below(keys: Mapping[str, _Key], heading: str) -> list[str]:
    """The settings and then the headings below one, which ends in a dot."""
    below = [key.removeprefix(heading) for key in keys if key.startswith(heading)]
    names = dict.fromkeys(
        f"[{heading}{name.split('.')[0]}]" if "." in name else name for name in below
    )
    return sorted(names, key=lambda name: name.startswith("["))


def _convert(value: Any, kind: Any) -> Any:
    """The value as the type of its field. Raises ValueError if it has the wrong type."""
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        # TOML has no null.
        return None if value == "None" else _convert(value, _non_optional(kind))
    if get_origin(kind) is tuple:
        return _convert_list(value, members)
    if get_origin(kind) is Literal and value in members:
        return value
    if kind in (str, Path) and isinstance(value, TEXT) and not isinstance(value, bool):
        return kind(str(value))
    if kind is float and type(value) in (int, float, str):
        return float(value)
    if kind is int and type(value) in (int, str):
        return int(value)
    if kind is bool and type(value) is bool:
        return value
    raise ValueError


def _convert_list(value: Any, members: tuple[Any, ...]) -> tuple[Any, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    kinds = [members[0]] * len(values) if members[-1] is ... else members
    return tuple(_convert(one, kind) for one, kind in zip(values, kinds, strict=True))


def _describe(kind: Any) -> str:
    """What messages call a value of a type."""
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return _describe(_non_optional(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if get_origin(kind) is tuple:
        number = "" if members[-1] is ... else f"{len(members)} "
        return f"a list of {number}{TYPE_NAMES[members[0]][1]}"
    return TYPE_NAMES[kind][0]


def _non_optional(kind: Any) -> Any:
    """The type of an optional value without None."""
    (found,) = (member for member in get_args(kind) if member is not type(None))
    return found
