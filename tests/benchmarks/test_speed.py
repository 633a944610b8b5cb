"""The comparison of speeds: the two sides take turns, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import speed
from benchmarks.gpu.training import TEXT
from benchmarks.speed import CASES, LEAN, PLAIN, compare, describe, main, side

SCRIPT = """\
import sys
from pathlib import Path
from tqdm.auto import tqdm
made = Path(sys.argv[1])
bar = tqdm(range(1000), desc="Steps")
for number in range(1000):
    made.write_text(str(number + 1))
    bar.update(1)
"""


def test_a_side_makes_a_step_only_when_it_is_told_to(tmp_path: Path):
    script, made = tmp_path / "script.py", tmp_path / "made"
    script.write_text(SCRIPT, "utf-8")
    with side({"script": [str(script), str(made)]}) as step:
        counts = [made.read_text()]
        for _ in range(2):
            assert step() > 0
            counts.append(made.read_text())
        assert counts == ["1", "2", "3"]
    assert made.read_text() == "3"


def test_the_error_of_a_side_that_ends_is_shown(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("raise SystemExit('no such model')", "utf-8")
    with (
        pytest.raises(RuntimeError, match="^a side ended early: .*no such model$"),
        side({"script": [str(script)]}),
    ):
        pass


def test_the_sides_take_turns_and_rounds_have_medians():
    turns: list[str] = []

    def clock(name: str, *seconds: float) -> Callable[[], float]:
        left = list(seconds)
        return lambda: turns.append(name) or left.pop(0)

    ours, other = clock("ours", 9, 9, 1, 2, 9, 4, 4, 4), clock("its", 9, 9, 2, 4, 1, 6, 6, 9)
    assert compare(ours, other, rounds=2, turns=3) == [(2, 2), (4, 6)]
    assert turns == ["ours", "its"] * 8


def test_a_line_has_the_ratio_with_its_range_and_the_seconds():
    assert describe("unet", [(2.0, 3.0), (2.0, 4.0), (4.0, 7.0)]) == (
        "unet: 1.75 times as fast (1.50 to 2.00 in 3 rounds), 2.00 s a step against 4.00 s"
    )


def test_release_is_compared_with_the_same_step_without_it():
    ours, other = CASES["release"]
    assert other is not None
    assert {**asdict(ours), "gradient_release": False} == asdict(other)
    assert ours.gradient_release


def test_our_own_steps_are_compared(capsys):
    assert main(["--tiny", "--cases", "release", "--rounds", "2", "--turns", "1"]) == 0
    assert "in 2 rounds" in capsys.readouterr().out


def test_without_the_script_its_cases_are_left_out(capsys):
    assert main(["--tiny", "--cases", "unet"]) == 0
    assert capsys.readouterr().out == f"unet: {speed.LEFT_OUT}\n"


def test_settings_are_those_that_users_may_choose(tmp_path: Path):
    for setting in (PLAIN, LEAN, replace(PLAIN, trains=TEXT)):
        config = setting.config(tmp_path, 256)
        assert (config.weights, config.gradient_release) == (
            setting.weights, setting.gradient_release,
        )  # fmt: skip
