"""Locales, help pages and error messages agree with the nodes' schemas."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests import help_pages, schemas
from tests.help_pages import LOCALES, PAGES, locale, page_path
from tests.schemas import ROOT

TRANSLATIONS = ["ko"]
"""English has no file: ComfyUI's page takes what a locale does not contain from the schemas."""
LANGUAGES = ["en", *TRANSLATIONS]
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")
NUMBER_WORDS = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "third": "3", "quarter": "4",
    "sixth": "6", "tenth": "10", "minute": "1", "a": "1",
}  # fmt: skip
"""English words whose Korean translation has digits."""


@pytest.fixture(scope="module")
def nodes() -> dict[str, schemas.Node]:
    return schemas.nodes()


def page(node: str, language: str) -> str:
    return page_path(node, language).read_text("utf-8")


@cache
def texts_in_code() -> list[str]:
    """All strings in nodes/ and trainer/; those between the values of an f-string are separate."""
    paths = [path for room in ("nodes", "trainer") for path in (ROOT / room).rglob("*.py")]
    found = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    constants = [node.value for node in found if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def test_all_languages_are_tested():
    assert sorted(path.name for path in LOCALES.iterdir()) == TRANSLATIONS
    assert {path.stem for path in PAGES.rglob("*.md")} == set(LANGUAGES)


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_has_exactly_the_inputs_and_outputs_of_the_nodes(nodes, language):
    assert {
        node: (list(said["inputs"]), list(said["outputs"]))
        for node, said in locale(language).items()
    } == {
        name: (list(node.tooltips), [str(place) for place in range(len(node.outputs))])
        for name, node in nodes.items()
    }


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_translates_everything(nodes, language):
    for name, said in locale(language).items():
        assert set(said) == {"display_name", "description", "inputs", "outputs"}, name
        for key, field in said["inputs"].items():
            assert set(field) == {"name", "tooltip"}, f"{name} {key}"
        for place, field in said["outputs"].items():
            # ComfyUI's page itself translates outputs that are named like their type.
            has_name = "display_name" in nodes[name].outputs[int(place)].options
            assert set(field) == {"tooltip"} | ({"name"} if has_name else set()), f"{name} {place}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_has_the_numbers_of_the_tooltips_and_no_others(nodes, language):
    for name, node in nodes.items():
        said = locale(language)[name]
        pairs = [(tooltip, said["inputs"][key]) for key, tooltip in node.tooltips.items()]
        pairs += [
            (output.tooltip, said["outputs"][str(place)])
            for place, output in enumerate(node.outputs)
        ]
        for english, field in pairs:
            numbers, translated = numbers_in(english), numbers_in(field["tooltip"])
            words = {NUMBER_WORDS.get(word, "") for word in re.findall(r"\w+", english.lower())}
            assert numbers <= translated <= numbers | words, f"{name}: {english}"


def numbers_in(text: str) -> set[str]:
    return set(NUMBER.findall(text))


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_locale_has_no_characters_with_a_meaning_to_the_page(language):
    """The page reads braces as values, @ as another text and | as plural forms, and takes an empty
    text for a missing one."""
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


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_tables_of_help_pages_are_those_that_the_command_writes(nodes, language):
    for name, node in nodes.items():
        text = page(name, language)
        written = help_pages.with_tables(text, node, language)
        assert text == written, f"{name}: run `make pages`"


@pytest.mark.parametrize("language", LANGUAGES)
def test_tables_fit_the_narrow_panel_that_shows_them(nodes, language):
    for name in nodes:
        rows = [line for line in page(name, language).splitlines() if line.startswith("|")]
        assert rows, name
        assert [row for row in rows if len(re.findall(r"(?<!\\)\|", row)) > 3] == [], name


def test_an_english_page_is_titled_like_the_node(nodes):
    for name, node in nodes.items():
        assert page(name, "en").startswith(f"# {node.name}\n"), name


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_a_translated_page_has_both_names_in_its_title(nodes, language):
    """Error messages, which are English, contain the English one."""
    for name, node in nodes.items():
        title = f"# {locale(language)[name]['display_name']} ({node.name})\n"
        assert page(name, language).startswith(title), name


def quotes(node: str, language: str) -> list[str]:
    """The messages on a page: they are in curly quotes, with … for the values in them."""
    return re.findall("“(.*?)”", " ".join(page(node, language).split()))


def test_english_pages_quote_messages_of_the_code(nodes):
    for node in nodes:
        assert quotes(node, "en"), node
        for quote in quotes(node, "en"):
            for part in quote.split("…"):
                assert any(part in text for text in texts_in_code()), f"{node}: {quote}"


@pytest.mark.parametrize("language", TRANSLATIONS)
def test_translated_pages_quote_the_same_messages(nodes, language):
    for node in nodes:
        assert quotes(node, language) == quotes(node, "en"), node


def test_errors_name_widgets_that_exist(nodes):
    tree = ast.parse((ROOT / "nodes" / "errors.py").read_text("utf-8"))
    (table,) = [node.value for node in tree.body if isinstance(node, ast.Assign)
                and ast.unparse(node.targets[0]) == "WIDGETS"]  # fmt: skip
    shown = {(field.name, node.name) for node in nodes.values() for field in node.inputs}
    for named in ast.literal_eval(table).values():
        widget, _, node = named.partition(" of ")
        assert any(widget == name and node in ("", title) for name, title in shown), named
