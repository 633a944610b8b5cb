"""From a preset and a TOML file to the defaults of a command, which its flags then override."""

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
"""Flags of a command that are no keys of its file."""
TEXT = (str, int, float, datetime.date, datetime.time)
"""What counts as text, so that `name = 2024` needs no quotation marks."""
WORDS: dict[Any, tuple[str, str]] = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
}
"""One and several of a type."""

Values = dict[tuple[str, ...], Any]
"""By the names of the fields that lead to each from the command."""


class _Key(NamedTuple):
    place: tuple[str, ...]
    kind: Any


def read_toml(path: Path) -> dict[str, Any]:
    """ValueError for a file that is not TOML, OSError for one that cannot be read."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}. Correct that line.") from error


def read_values(command: type, settings: Mapping[str, Any], source: str) -> Values:
    """Nested settings, named as the command's flags are, as values of its fields. ValueError, which
    names the source, for a key that is none of the command's, and for a value of another type."""
    keys = dict(_keys(command))
    values = {}
    for name, value in _entries(settings, keys, source):
        place, kind = keys[name]
        try:
            values[place] = _convert(value, kind)
        except ValueError:
            shown = json.dumps(value, ensure_ascii=False, default=str)
            raise ValueError(f"'{source}': {name} must be {_words(kind)}, got {shown}.") from None
    return values


def defaults(settings: type, values: Values, place: tuple[str, ...] = (), given: Any = None) -> Any:
    """An instance of a dataclass with these values, and else its own defaults, which are those of
    `given` where there is one; `tyro.MISSING` stands for what is required. Nothing is checked:
    tyro makes the instance that counts."""
    made: Any = object.__new__(settings)
    hints = get_type_hints(settings)
    for field in dataclasses.fields(settings):
        here, kind = (*place, field.name), hints[field.name]
        value = default_of(field) if given is None else getattr(given, field.name)
        if dataclasses.is_dataclass(kind):
            nested = None if value is dataclasses.MISSING else value
            value = defaults(kind, values, here, nested)  # type: ignore[arg-type]
        elif value is dataclasses.MISSING:
            value = tyro.MISSING
        object.__setattr__(made, field.name, values.get(here, value))
    return made


def _keys(
    settings: type, place: tuple[str, ...] = (), heading: str = ""
) -> Iterator[tuple[str, _Key]]:
    """The dotted name of every key, and what it sets."""
    for name, hint in get_type_hints(settings, include_extras=True).items():
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if tyro.conf.Fixed in marks or (*place, name) == NO_KEYS:
            continue
        is_unnamed = any(getattr(mark, "name", None) == "" for mark in marks)
        if dataclasses.is_dataclass(kind):
            below = heading if is_unnamed else f"{heading}{name}."
            yield from _keys(kind, (*place, name), below)  # type: ignore[arg-type]
        else:
            yield heading + name, _Key((*place, name), kind)


def _entries(
    settings: Mapping[str, Any], keys: Mapping[str, _Key], source: str, heading: str = ""
) -> Iterator[tuple[str, Any]]:
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
    where = f"Under [{heading[:-1]}]" if heading else "There"
    return (
        f"'{source}' has the key '{key}', which this command does not have. {where} can be: "
        f"{', '.join(sorted(names, key=lambda name: name.startswith('[')))}."
    )


def _convert(value: Any, kind: Any) -> Any:
    """ValueError for a value of another type."""
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        # TOML has no word for none.
        return None if value == "None" else _convert(value, _something(kind))
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


def _words(kind: Any) -> str:
    """What a value of a type is, in words."""
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return _words(_something(kind))
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, members))}"
    if get_origin(kind) is tuple:
        number = "" if members[-1] is ... else f"{len(members)} "
        return f"a list of {number}{WORDS[members[0]][1]}"
    return WORDS[kind][0]


def _something(kind: Any) -> Any:
    """What an optional value is where there is one."""
    (found,) = (member for member in get_args(kind) if member is not type(None))
    return found
