"""Figures in the documentation that a benchmark writes."""

from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"


def write_between(place: str, text: str) -> None:
    """Replace what is between `<!-- place -->` and `<!-- end of place -->` in docs/faults.md."""
    start, end = f"<!-- {place} -->", f"<!-- end of {place} -->"
    page = PAGE.read_text("utf-8")
    before, rest = page.split(start)
    after = rest.split(end)[1]
    PAGE.write_text(f"{before}{start}\n\n{text}\n\n{end}{after}", "utf-8")
