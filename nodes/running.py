"""How ComfyUI runs one of our nodes: once or once per item of a list, with the defaults of what a
workflow leaves out, and with its warnings and errors shown on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import wraps
from inspect import Parameter, signature
from typing import Any

from comfy_api.latest import io

from ..host_version import package_complaint
from ..trainer.storage.disk_errors import explained
from . import host
from .errors import naming_widgets
from .sockets import CATEGORY

MEANT_BEFORE = {"vram": "off"}
"""What workflows mean that have no value for a widget because they are older, if it is not the
widget's default."""
Join = Callable[[list[Any]], Any]
"""Makes one value of all values of an input."""


def node_schema(**options: Any) -> io.Schema:
    """A node's schema, with what all our nodes share: each input arrives as the list of its
    values, which `runs_once` and `runs_per_item` expect."""
    return io.Schema(category=CATEGORY, essentials_category=CATEGORY, is_input_list=True, **options)


def runs_once(**joins: Join) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a node's `execute`, which is called with one value for each input. ComfyUI would
    otherwise run it once for each item of a list. `joins` names the inputs that accept lists; for
    others ValueError is raised."""

    def result(runs: list[io.NodeOutput]) -> io.NodeOutput:
        return runs[0]

    return _runs(joins, lambda inputs: [inputs], result)


def runs_per_item(**joins: Join) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same for a node that runs once for each item of a list, as ComfyUI does by default. Each
    of its outputs must be declared as a list."""

    def result(runs: list[io.NodeOutput]) -> io.NodeOutput:
        return io.NodeOutput(*map(list, zip(*(run.args for run in runs), strict=True)))

    return _runs(joins, lambda inputs: _items(inputs, joins), result)


def _runs(
    joins: Mapping[str, Join],
    split: Callable[[Mapping[str, Any]], list[Mapping[str, Any]]],
    result: Callable[[list[io.NodeOutput]], io.NodeOutput],
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(execute: Callable[..., Any]) -> Callable[..., Any]:
        named = list(signature(execute).parameters.values())[1:]
        needed = {
            each.name
            for each in named
            if each.default is Parameter.empty and each.kind is not Parameter.VAR_KEYWORD
        }

        # Made once, because its menus list whole folders. Only names and defaults are used here,
        # and they stay the same.
        schema: io.Schema | None = None

        @wraps(execute)
        def run(cls: type[io.ComfyNode], **inputs: list[Any]) -> Any:
            nonlocal schema
            with host.warnings_on_node(), naming_widgets(), explained():
                if complaint := package_complaint(for_every_run=True):
                    raise RuntimeError(complaint)
                schema = schema or cls.define_schema()
                runs = []
                for each in split(inputs):
                    values = _single_values(each, joins, str(schema.display_name))
                    runs.append(_with_defaults(values, schema.inputs))
                    _require(needed - runs[-1].keys())
                return result([execute(cls, **values) for values in runs])

        return run

    return decorate


def first_values(fingerprint: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a node's `fingerprint_inputs`, which is called with the first value of each input
    that has one. Values from other nodes are missing."""

    @wraps(fingerprint)
    def run(cls: type[io.ComfyNode], **inputs: list[Any]) -> Any:
        return fingerprint(cls, **_map(inputs, lambda name, values: values[0] if values else None))

    return run


def _require(missing: Set[str]) -> None:
    if missing:
        raise ValueError(
            f"{', '.join(sorted(missing))} has no value: the node connected to it returned "
            "nothing. Connect another node."
        )


def _items(inputs: Mapping[str, Any], joins: Mapping[str, Join]) -> list[Mapping[str, Any]]:
    """The inputs of each run. The last item of a shorter list is used for all further runs."""
    lists = {
        name: values
        for name, values in inputs.items()
        if name not in joins and isinstance(values, list)
    }

    def run(number: int) -> Mapping[str, Any]:
        items = {name: values[number:][:1] or values[-1:] for name, values in lists.items()}
        return {**inputs, **items}

    return list(map(run, range(max(map(len, lists.values()), default=1))))


def _single_values(
    inputs: Mapping[str, Any], joins: Mapping[str, Join], node: str
) -> dict[str, Any]:
    def single(name: str, values: Sequence[Any]) -> Any:
        given = [value for value in values if value is not None]
        join = joins.get(name.partition(".")[0])
        if not values:
            raise ValueError(f"{name} is an empty list. Check the node that is connected to it.")
        if join:
            return join(given) if given else None
        if len(values) > 1:
            raise ValueError(
                f"{name} is a list of {len(values)} values, but {node} runs once. Connect a node "
                "that gives one value, or queue the workflow once for each."
            )
        return values[0]

    return _map(inputs, single)


def _map(
    inputs: Mapping[str, Any], change: Callable[[str, Sequence[Any]], Any], path: str = ""
) -> dict[str, Any]:
    """Change the list of each input, also of those below a menu, and leave out None."""
    changed = {
        name: _map(values, change, f"{path}{name}.")
        if isinstance(values, dict)
        else change(f"{path}{name}", values)
        for name, values in inputs.items()
        if values is not None
    }
    return {name: value for name, value in changed.items() if value is not None}


def _with_defaults(values: Mapping[str, Any], inputs: Sequence[io.Input]) -> dict[str, Any]:
    """The values, and the defaults of the widgets that have no value."""
    found = dict(values)
    for each in inputs:
        if isinstance(each, io.DynamicCombo.Input):
            below = found.get(each.id) or {}
            if not isinstance(below, Mapping):
                raise ValueError(
                    f"{each.id} got {below!r} from another node, but has settings below it. Choose "
                    "it on the node itself."
                )
            for option in each.options:
                if option.key == below.get(each.id):
                    found[each.id] = _with_defaults(below, option.inputs)
        elif getattr(each, "default", None) is not None:
            found.setdefault(each.id, MEANT_BEFORE.get(each.id, each.default))
    return found
