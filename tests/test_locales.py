"""What locales, help pages and errors say of the nodes, against the nodes' own schemas: these are
read through a stand-in for ComfyUI's form of a node, so that no ComfyUI is needed."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
TRANSLATIONS = ["ko"]
"""English has no file: what a locale does not name, ComfyUI's page takes from the schemas."""
LANGUAGES = ["en", *TRANSLATIONS]
PACK = "pack_whose_words_are_read"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


class Name:
    """Whatever the nodes take from `comfy_api.latest`, host.py or folders.py; calling it notes the
    call."""

    def __init__(self, *path: str) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Name:
        return Name(*self.path, name)

    def __call__(self, *args: Any, **options: Any) -> Call:
        return Call(self.path, args, options)

    def __str__(self) -> str:
        return ".".join(self.path)


class Call:
    """Such as io.Int.Input("steps", tooltip="..."), with ("Int", "Input") as path."""

    def __init__(
        self, path: tuple[str, ...], args: tuple[Any, ...], options: dict[str, Any]
    ) -> None:
        self.path, self.args, self.options = path, args, options

    def __getattr__(self, name: str) -> Name:
        return Name(*self.path, name)

    def __iter__(self) -> Iterator[Any]:
        return iter(())  # as a menu of files: there are none


class Words:
    """A node's, as its schema says them."""

    def __init__(self, schema: Call) -> None:
        self.name: str = schema.options["display_name"]
        self.inputs = dict(pair for field in schema.options["inputs"] for pair in _inputs(field))
        """Tooltips by the inputs' names; below a dynamic menu those are "menu.name"."""
        outputs = [output.options for output in schema.options["outputs"]]
        self.outputs = {str(place): output["tooltip"] for place, output in enumerate(outputs)}
        """Tooltips by place."""
        self.output_names = {
            str(place): output["display_name"]
            for place, output in enumerate(outputs)
            if "display_name" in output
        }
        """By place. ComfyUI's page itself translates those that are called as their type."""


def _inputs(field: Call) -> Iterator[tuple[str, str]]:
    name = field.args[0]
    yield name, field.options["tooltip"]
    if field.path[0] == "DynamicCombo":
        for option in field.options["options"]:
            for inner in option.args[1]:
                yield from ((f"{name}.{below}", tip) for below, tip in _inputs(inner))


@pytest.fixture(scope="module")
def nodes() -> dict[str, Words]:
    """The words of every node, by its id."""
    form, pack = ModuleType("comfy_api.latest"), ModuleType(PACK)
    pack.__path__ = [str(ROOT)]
    io = Name()
    io.ComfyNode = object
    vars(form).update(io=io, ui=Name(), ComfyExtension=object)
    modules: dict[str, Any] = {
        "comfy_api": ModuleType("comfy_api"),
        "comfy_api.latest": form,
        PACK: pack,
        f"{PACK}.nodes.host": Name("host"),
        f"{PACK}.nodes.folders": Name("folders"),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, module in modules.items():
            patch.setitem(sys.modules, name, module)
        schemas = [node.define_schema() for node in import_module(f"{PACK}.nodes").NODES]
    for name in [name for name in sys.modules if name.startswith(PACK)]:
        del sys.modules[name]
    return {schema.options["node_id"]: Words(schema) for schema in schemas}


@cache
def locale(language: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
    return found


def page(node: str, language: str) -> str:
    return (PAGES / node / f"{language}.md").read_text("utf-8")


def label(name: str) -> str:
    """An input's name as the node shows it where no locale says another."""
    return name.split(".")[-1]


def key(name: str) -> str:
    """An input's name as locales have it."""
    return name.replace(".", "_")


@cache
def texts_in_code() -> list[str]:
    """Every text there; of one with values in it, the parts between them."""
    paths = [path for room in ("nodes", "trainer") for path in (ROOT / room).rglob("*.py")]
    found = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    constants = [node.value for node in found if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def test_the_languages_are_those_tested_here():
    assert sorted(path.name for path in LOCALES.iterdir()) == TRANSLATIONS
    assert {path.stem for path in PAGES.rglob("*.md")} == set(LANGUAGES)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_names_the_nodes_inputs_and_outputs_that_there_are(nodes, language):
    there_are = {node: ({key(i) for i in said.inputs}, set(said.outputs))
                 for node, said in nodes.items()}  # fmt: skip
    assert {
        node: (set(said["inputs"]), set(said["outputs"])) for node, said in locale(language).items()
    } == there_are


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_leaves_nothing_to_be_said_in_english(nodes, language):
    for node, said in locale(language).items():
        assert set(said) == {"display_name", "description", "inputs", "outputs"}, node
        for name, field in said["inputs"].items():
            assert set(field) == {"name", "tooltip"}, f"{node} {name}"
        for place, field in said["outputs"].items():
            named = {"name"} if place in nodes[node].output_names else set()
            assert set(field) == {"tooltip"} | named, f"{node} {place}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_says_the_numbers_of_the_schemas(nodes, language):
    for node, words in nodes.items():
        said = locale(language)[node]
        for name, tooltip in [*words.inputs.items(), *words.outputs.items()]:
            field = said["outputs" if name.isdigit() else "inputs"][key(name)]
            missing = set(NUMBER.findall(tooltip)) - set(NUMBER.findall(field["tooltip"]))
            assert missing == set(), f"{node} {name}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_is_free_of_signs_that_the_page_reads_as_commands(language):
    """In its texts, braces stand for values, @ for another text, | for plural forms; an empty text
    is a missing one."""
    texts = list(_texts(locale(language)))
    assert [text for text in texts if not text.strip() or set(text) & set("{}@|")] == []


def _texts(value: str | dict[str, Any]) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    else:
        for part in value.values():
            yield from _texts(part)


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_node_has_its_help_page(nodes, language):
    assert {path.parent.name for path in PAGES.rglob(f"{language}.md")} == set(nodes)


def test_an_english_page_has_the_names_that_the_node_shows(nodes):
    for node, words in nodes.items():
        text = page(node, "en")
        assert text.startswith(f"# {words.name}\n"), node
        assert [name for name in words.inputs if f"`{label(name)}`" not in text] == [], node
        outputs = list(words.output_names.values())
        assert [name for name in outputs if f"\n| {name} |" not in text] == [], node


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translated_page_has_both_names(nodes, language):
    """Error messages, which are English, call inputs and nodes by the other one."""
    for node, words in nodes.items():
        text, said = page(node, language), locale(language)[node]
        assert text.startswith(f"# {said['display_name']} ({words.name})\n"), node
        for name in words.inputs:
            shown = f"{said['inputs'][key(name)]['name']} (`{label(name)}`)"
            assert shown in text, node
        for place in words.output_names:
            assert f"\n| {said['outputs'][place]['name']} |" in text, node


def quotes(node: str, language: str) -> list[str]:
    """Messages on a page: they stand in curly quotes, with … for what differs."""
    return re.findall("“(.*?)”", " ".join(page(node, language).split()))


def test_messages_on_english_pages_are_those_of_the_code(nodes):
    for node in nodes:
        assert quotes(node, "en"), node
        for quote in quotes(node, "en"):
            for part in quote.split("…"):
                assert any(part in text for text in texts_in_code()), f"{node}: {quote}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translated_pages_quote_the_same_messages(nodes, language):
    for node in nodes:
        assert quotes(node, language) == quotes(node, "en"), node


def test_errors_name_widgets_that_there_are(nodes):
    tree = ast.parse((ROOT / "nodes" / "errors.py").read_text("utf-8"))
    (table,) = [node.value for node in tree.body if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "WIDGETS"]  # fmt: skip
    shown = {(label(name), words.name) for words in nodes.values() for name in words.inputs}
    for named in ast.literal_eval(table).values():
        widget, _, node = named.partition(" of ")
        assert any(widget == name and node in ("", title) for name, title in shown), named
