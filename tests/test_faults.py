"""The tables of faults and of inputs: every row names tests that exist, and quotes messages of the
code. Tables of figures stand between comments with their names."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("faults.md", "inputs.md")
HEADS = ("| Fault ", "| Input ")
MEASURED = re.compile(r"<!-- ([\w ]+) -->.*?<!-- end of \1 -->", re.DOTALL)
"""The tables that benchmarks write."""


@pytest.mark.parametrize("page", PAGES)
def test_every_row_names_tests_that_exist(page):
    text = (ROOT / "docs" / page).read_text("utf-8")
    lines = MEASURED.sub("", text).splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(HEADS)]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[3])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}::{test}"


def texts_in_code() -> list[str]:
    """Every string constant; of an f-string, the parts between its values."""
    paths = [path for room in ("nodes", "trainer") for path in (ROOT / room).rglob("*.py")]
    paths.append(ROOT / "host_version.py")
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8")))]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def is_made_of(part: str, texts: list[str]) -> bool:
    """Whether a text contains the part, or several texts do, one after the other."""
    part = part.strip(" .")
    if any(part in text for text in texts):
        return True
    cuts = [space.start() for space in re.finditer(" ", part) if space.start() >= 10]
    return any(
        any(text.strip(" .").endswith(part[:cut].rstrip(" .")) for text in texts)
        and is_made_of(part[cut:], texts)
        for cut in cuts
    )


@pytest.mark.parametrize("page", PAGES)
def test_quoted_messages_are_those_of_the_code(page):
    """They stand in curly quotes, with … for the parts that differ."""
    texts = texts_in_code()
    quotes = re.findall("“(.*?)”", (ROOT / "docs" / page).read_text("utf-8"))
    parts = [(quote, part) for quote in quotes for part in quote.split("…")]
    assert [f"{part} in {quote}" for quote, part in parts if not is_made_of(part, texts)] == []
