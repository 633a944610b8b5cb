"""Parses the command line with tyro, except that it checks the settings itself.

tyro reports the errors of nested settings under its own internal names, such as
`__tyro-dummy-inner__.config.prior`. Here it builds all settings unchecked, and the checks run
afterwards, so that an error names a setting as the user wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, get_type_hints

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from .settings_file import is_unnamed, unchecked


def parse(command: Any, arguments: list[str], *, prog: str, description: str) -> Any:
    """An instance of the command. Raises ValueError for settings that cannot be used, SystemExit
    for flags that tyro rejects."""
    registry = ConstructorRegistry()
    registry.struct_rule(_DataclassRule())
    with registry:
        found = tyro.cli(command, args=arguments, prog=prog, description=description)
    return _checked(found)


class _DataclassRule:
    """Tells tyro to build dataclasses without calling `__post_init__`, and to show the docstring of
    a field as one paragraph: tyro would keep its line breaks."""

    def __init__(self) -> None:
        self._is_delegating = False

    def __call__(self, info: StructTypeInfo) -> StructConstructorSpec | None:
        if self._is_delegating or not dataclasses.is_dataclass(info.type):
            return None
        self._is_delegating = True  # this rule returns None now, so tyro's own rule answers
        try:
            usual = ConstructorRegistry.get_struct_spec(info)
        finally:
            self._is_delegating = False
        if not isinstance(usual, StructConstructorSpec):
            return None

        def build(**values: Any) -> Any:
            return unchecked(info.type, **values)

        build.__doc__ = info.type.__doc__  # shown as the description
        return StructConstructorSpec(build, tuple(map(_with_one_paragraph, usual.fields)))


def _with_one_paragraph(field: StructFieldSpec) -> StructFieldSpec:
    return dataclasses.replace(field, helptext=partial(_one_paragraph, field.helptext))


def _one_paragraph(text: str | Callable[[], str | None] | None) -> str | None:
    found = text() if callable(text) else text
    return " ".join(found.split()) if found else found


def _checked(settings: Any, path: str = "", heading: str = "") -> Any:
    """Build a dataclass again with its checks, innermost first. `path` leads from the command to
    its fields, `heading` is how flags and settings files write that; both end in a dot."""
    hints = get_type_hints(type(settings), include_extras=True)
    values = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            below = heading if is_unnamed(hints[field.name]) else f"{heading}{field.name}."
            value = _checked(value, f"{path}{field.name}.", below)
        values[field.name] = value
    try:
        return type(settings)(**values)
    except ValueError as error:
        message = str(error).replace(path, heading)
        raise ValueError(_under_heading(message, heading, values.keys())) from error


def _under_heading(message: str, heading: str, names: Iterable[str]) -> str:
    """An error message about settings with these names, with their heading in it."""
    if heading in message:
        return message
    begins_with_name = message.split()[0] in names
    return f"{heading}{message}" if begins_with_name else f"{heading[:-1]}: {message}"
