"""Figures in docs/faults.md that benchmarks write."""

from collections.abc import Iterable
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"


def marks(place: str) -> tuple[str, str]:
    """What stands before and after the figures of a place."""
    return f"<!-- {place} -->", f"<!-- end of {place} -->"


def write_between(place: str, text: str) -> None:
    """Replace the figures of a place."""
    start, end = marks(place)
    page = PAGE.read_text("utf-8")
    before, rest = page.split(start)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", "utf-8")


def table(rows: Iterable[Iterable[object]]) -> str:
    """A table in Markdown: the heads, then the other rows. All but the first column are numbers."""
    heads, *others = ([str(cell) for cell in row] for row in rows)
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *others]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
