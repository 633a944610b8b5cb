"""Turns a preset and a TOML settings file into the defaults of a command. Flags override them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import tyro

from ..settings.effects import default_of

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

Values = dict[tuple[str, ...], Any]
"""Values by their path of field names from the command, such as ("config", "prior", "weight")."""


class _Key(NamedTuple):
    path: tuple[str, ...]
    """Field names from the command."""
    kind: Any
    """The type of the value."""


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file. Raises ValueError if it is not valid TOML, OSError if it cannot
    be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}. Correct that line.") from error


def read_values(command: type, settings: Mapping[str, Any], source: str) -> Values:
    """Values for the fields of a command from nested settings, which are named like its flags.
    Raises ValueError, naming the source, for an unknown key and for a value of the wrong type."""
    keys = dict(_keys(command))
    values = {}
    for name, value in _entries(settings, keys, source):
        path, kind = keys[name]
        try:
            values[path] = _convert(value, kind)
        except ValueError:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            expected = _describe(kind)
            raise ValueError(f"'{source}': {name} must be {expected}, got {shown}.") from None
    return values


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
        else:
            raise ValueError(_unknown(key, keys, source, f"{key}." if is_heading else heading))


def _unknown(key: str, keys: Mapping[str, _Key], source: str, heading: str) -> str:
    below = [other.removeprefix(heading) for other in keys if other.startswith(heading)]
    names = dict.fromkeys(
        f"[{heading}{name.split('.')[0]}]" if "." in name else name for name in below
    )
    where = f"Known keys under [{heading[:-1]}]" if heading else "Known keys"
    return (
        f"'{source}' contains the key '{key}', which this command does not know. {where}: "
        f"{', '.join(sorted(names, key=lambda name: name.startswith('[')))}."
    )


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
