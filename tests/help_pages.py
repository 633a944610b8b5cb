"""Writes the tables of inputs and outputs in the nodes' help pages: `python -m tests.help_pages`.

The tables have two columns, because the panel that shows them is narrow and would cut a third.

The texts are the tooltips: English ones come from the nodes' schemas, others from the locales."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.schemas import ROOT, Field, Node, nodes

PAGES = ROOT / "web" / "docs"
LOCALES = ROOT / "locales"
START = "<!-- The tables from here on are written by `make pages`. -->"
END = "<!-- End of the tables. -->"
LINKS = {"Image", "Model", "Clip", "Vae", "Autogrow"}
"""Kinds of inputs that have no widget, beside the pack's own sockets."""
LARGE, SMALL = 100, 1e-6
"""Limits above and steps below these are not shown: they keep out nonsense and guide nobody."""


@dataclass(frozen=True)
class Words:
    """What the tables say besides names and tooltips."""

    input: tuple[str, str]
    output: tuple[str, str]
    on: str
    off: str
    link: str
    optional_link: str
    empty: str
    limits: str
    choice: str


WORDS = {
    "en": Words(
        input=("Input, default", "What it does"),
        output=("Output", "What it is"),
        on="on",
        off="off",
        link="link",
        optional_link="optional link",
        empty="empty",
        limits="from {} to {}",
        choice="With `{}`:",
    ),
    "ko": Words(
        input=("입력, 기본값", "설명"),
        output=("출력", "설명"),
        on="켬",
        off="끔",
        link="연결",
        optional_link="선택 연결",
        empty="비어 있음",
        limits="범위 {}~{}",
        choice="`{}` 선택 시:",
    ),
}


def page_path(node: str, language: str) -> Path:
    return PAGES / node / f"{language}.md"


@cache
def locale(language: str) -> dict[str, Any]:
    """The texts of a language by node. English has none: ComfyUI takes it from the schemas."""
    found: dict[str, Any] = json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))
    return found


def with_tables(page: str, node: Node, language: str) -> str:
    """The text of a page with new tables between `START` and `END`. Raises ValueError if it has no
    such lines."""
    before, start, rest = page.partition(f"{START}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not start or not end:
        raise ValueError(f"{node.id}/{language}.md lacks the lines {START} and {END}.")
    return f"{before}{start}\n{tables(node, language)}\n{end}{after}"


def tables(node: Node, language: str) -> str:
    """The tables of a node's inputs, first those that it always shows, and of its outputs."""
    words = WORDS[language]
    parts = [_table(words.input, _input_rows(_always_shown(node), node, language))]
    for option, fields in groupby(_sometimes_shown(node), key=_option):
        parts.append(f"{words.choice.format(option)}\n")
        parts.append(_table(words.input, _input_rows(fields, node, language)))
    parts.append(_table(words.output, _output_rows(node, language)))
    return "\n".join(parts)


def _option(field: Field) -> str:
    return field.choice.option if field.choice else ""


def _is_always_shown(field: Field, node: Node) -> bool:
    """Whether it is shown whatever the choice in a dynamic menu."""
    same = [other for other in node.inputs if other.key == field.key]
    return field.choice is None or len(same) == len(field.choice.options)


def _always_shown(node: Node) -> list[Field]:
    return [field for field in node.inputs if _is_always_shown(field, node)]


def _sometimes_shown(node: Node) -> list[Field]:
    return [field for field in node.inputs if not _is_always_shown(field, node)]


def _input_rows(fields: Iterable[Field], node: Node, language: str) -> Iterator[tuple[str, str]]:
    by_key: dict[str, list[Field]] = {}
    for field in fields:
        by_key.setdefault(field.key, []).append(field)
    for key, same in by_key.items():
        name, text = f"`{same[0].name}`", same[0].tooltip
        if language != "en":
            said = locale(language)[node.id]["inputs"][key]
            name, text = f"{said['name']} ({name})", said["tooltip"]
        yield f"{name}<br>{_defaults(same, WORDS[language])}", markdown(text)


def _output_rows(node: Node, language: str) -> Iterator[tuple[str, str]]:
    for place, output in enumerate(node.outputs):
        said = {} if language == "en" else locale(language)[node.id]["outputs"][str(place)]
        yield said.get("name", output.name), markdown(said.get("tooltip", output.tooltip))


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def markdown(text: str) -> str:
    """A tooltip as the cell of a table, with its quoted words as code."""
    escaped = re.sub(r"[|*~]", r"\\\g<0>", re.sub(r'"([^"]+)"', r"`\1`", text))
    parts = escaped.split("`")  # every second part is code
    parts[::2] = [part.replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def _defaults(fields: list[Field], words: Words) -> str:
    """The default value; if presets have different ones, each with the names of its presets."""
    by_value: dict[str, list[str]] = {}
    for field in fields:
        by_value.setdefault(_default(field, words), []).append(f"`{_option(field)}`")
    if len(by_value) == 1:
        (text,) = by_value
    else:
        text = "; ".join(f"{value} ({', '.join(names)})" for value, names in by_value.items())
    limits = _limits(fields[0], words)
    return f"{text}, {limits}" if limits else text


def _default(field: Field, words: Words) -> str:
    options, kind = field.options, field.kind
    if kind in LINKS or kind.startswith("DREAMBOOTH_"):
        is_optional = options.get("optional") or kind == "Autogrow"
        return words.optional_link if is_optional else words.link
    if kind == "Boolean":
        return words.on if options["default"] else words.off
    if kind in ("Int", "Float"):
        return _number(options["default"])
    if kind == "DynamicCombo":
        return f"`{options['options'][0].args[0]}`"
    if kind == "Combo" and not options["options"]:
        return "-"  # a menu of the user's files
    default = options.get("default", next(iter(options.get("options", [])), ""))
    return markdown(f'"{default}"') if default else words.empty


def _limits(field: Field, words: Words) -> str:
    options = field.options
    low, high = options.get("min"), options.get("max")
    if field.kind not in ("Int", "Float") or high > LARGE or options.get("step", 1) < SMALL:
        return ""
    return words.limits.format(_number(low), _number(high))


def _number(value: float) -> str:
    """Such as 0.5, and 2e-4 for what is below 0.01."""
    return re.sub(r"\.?0*e-0*", "e-", f"{value:e}") if 0 < value < 0.01 else f"{value:g}"


def main() -> None:
    for node in nodes().values():
        for language in WORDS:
            path = page_path(node.id, language)
            page = path.read_text("utf-8")
            path.write_text(with_tables(page, node, language), encoding="utf-8")


if __name__ == "__main__":
    main()
