"""The description of each setting: the docstring below its field, as the command line's help shows
it and the nodes' tooltips do."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from functools import cache
from typing import get_type_hints


@cache
def descriptions(settings: type) -> dict[str, str]:
    """The descriptions of a dataclass's fields by name, and by dotted name those of the dataclasses
    nested in it. Raises ValueError for a field without one."""
    found = {}
    texts, types = _docstrings(settings), get_type_hints(settings)
    for field in dataclasses.fields(settings):
        name, kind = field.name, types[field.name]
        if dataclasses.is_dataclass(kind):
            nested = descriptions(kind)  # type: ignore[arg-type]
            found.update({f"{name}.{inner}": text for inner, text in nested.items()})
        elif name in texts:
            found[name] = texts[name]
        else:
            raise ValueError(
                f"{settings.__name__}.{name} has no description. Write a docstring below the field."
            )
    return found


def _docstrings(settings: type) -> dict[str, str]:
    """The string below each field in the source of a class and of those that it inherits from, on
    one line."""
    found: dict[str, str] = {}
    for one in reversed(settings.__mro__[:-1]):
        found |= _own_docstrings(one)
    return found


def _own_docstrings(settings: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(settings))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        match field, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found
