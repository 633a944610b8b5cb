"""The fault table: every row names tests that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_every_row_of_the_fault_table_is_backed_by_tests():
    lines = (ROOT / "docs" / "faults.md").read_text("utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| Fault ")]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        assert len(cells) == 4, row
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", cells[3])
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}::{test}"
