"""The nodes' schemas, read without ComfyUI: stand-ins take the place of the modules that the nodes
import from it, and record what the nodes call."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).parents[1]
PACK = "pack_whose_schemas_are_read"
"""The name under which the pack is imported, as its folder may have any name."""


class Name:
    """A name in one of ComfyUI's modules, such as io.Int.Input. Calling it records the call."""

    def __init__(self, *path: str) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Name:
        return Name(*self.path, name)

    def __call__(self, *args: Any, **options: Any) -> Call:
        return Call(self.path, args, options)


class Call:
    """A recorded call: io.Int.Input("steps", min=1) has the path ("Int", "Input")."""

    def __init__(
        self, path: tuple[str, ...], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.path, self.args, self.options = path, args, options

    def __getattr__(self, name: str) -> Name:
        return Name(*self.path, name)


@dataclass(frozen=True)
class Choice:
    """What an input belongs to: an option of a dynamic menu, such as `object` of `preset`."""

    menu: str
    option: str
    options: tuple[str, ...]
    """All options of the menu that show inputs."""


@dataclass(frozen=True)
class Field:
    """An input of a node, or an output."""

    name: str
    """What the node shows if no locale has another name for it."""
    kind: str
    """Such as "Int", "Combo", or "DREAMBOOTH_MODEL" for a socket of the pack's own."""
    options: dict[str, Any]
    choice: Choice | None = None

    @property
    def key(self) -> str:
        """The input's name in locales."""
        return f"{self.choice.menu}_{self.name}" if self.choice else self.name

    @property
    def tooltip(self) -> str:
        text: str = self.options["tooltip"]
        return text


class Node:
    """A node's schema."""

    def __init__(self, schema: Call) -> None:
        self.id: str = schema.options["node_id"]
        self.name: str = schema.options["display_name"]
        self.search_aliases: list[str] = schema.options.get("search_aliases", [])
        self.description: str = schema.options["description"]
        self.inputs = [field for call in schema.options["inputs"] for field in _inputs(call)]
        """In the node's order. What an option of a dynamic menu shows follows the menu; an input
        that several options show is listed once for each."""
        self.outputs = [_output(call) for call in schema.options["outputs"]]

    @property
    def tooltips(self) -> dict[str, str]:
        """The inputs' tooltips by their names in locales."""
        return {field.key: field.tooltip for field in self.inputs}


def _inputs(call: Call, choice: Choice | None = None) -> Iterator[Field]:
    name, kind = call.args[0], _kind(call)
    yield Field(name, kind, call.options, choice)
    if kind == "DynamicCombo":
        below_options = [each.args for each in call.options["options"] if each.args[1]]
        options = tuple(option for option, _ in below_options)
        for option, inner in below_options:
            for below in inner:
                yield from _inputs(below, Choice(name, option, options))


def _output(call: Call) -> Field:
    return Field(call.options.get("display_name", call.args[0]), _kind(call), call.options)


def _kind(call: Call) -> str:
    return call.path[0]


def _modules() -> dict[str, Any]:
    form, folder_paths = ModuleType("comfy_api.latest"), ModuleType("folder_paths")
    pack = ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    io = Name()
    vars(io)["ComfyNode"] = object
    vars(io)["Custom"] = Name
    host = Name("host")
    vars(host)["ComfyObserver"] = object
    vars(form).update(io=io, ui=Name(), ComfyExtension=object)
    vars(folder_paths).update(
        folder_names_and_paths={},
        get_filename_list=lambda kind: [],
        get_input_directory=lambda: str(ROOT / "no such folder"),
        get_output_directory=lambda: "output",
        get_folder_paths=lambda kind: [f"models/{kind}"],
    )
    return {
        "comfy_api": ModuleType("comfy_api"),
        "comfy_api.latest": form,
        "folder_paths": folder_paths,
        PACK: pack,
        f"{PACK}.nodes.host": host,
    }


@cache
def nodes() -> dict[str, Node]:
    """Every node by its id, in the order of `nodes.NODES`."""
    with patch.dict(sys.modules, _modules()):
        found = [Node(node.define_schema()) for node in import_module(f"{PACK}.nodes").NODES]
    return {node.id: node for node in found}
