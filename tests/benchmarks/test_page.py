"""The page of made-up scores, whose verdicts are known."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.article.experiments import EXPERIMENTS, MEASURES
from benchmarks.article.page import write_page
from benchmarks.article.scores import Point, ScoreBook

SEEDS = (0, 1, 2)


def fill(book: ScoreBook, letter: str, value_of: dict[str, float], seeds=SEEDS) -> None:
    """Scores of an experiment: everything is 0.5 and scatters by 0.01, but for what is named."""
    images = list(np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8))
    for label, point in EXPERIMENTS[letter].points.items():
        for seed in seeds:
            measures = dict.fromkeys(MEASURES, 0.5 + 0.01 * seed)
            measures["class kept"] = value_of.get(label, 0.5) + 0.01 * seed
            times = {"training_seconds": 60.0, "scoring_seconds": 30.0}
            add(book, point, seed, {**measures, **times}, images)


def add(book: ScoreBook, point: Point, seed: int, measures, images) -> None:
    book.add(point.key(seed), measures, {"seed": seed})
    book.add_pictures(point.key(seed), images[:6] if point.drawing else images)


def section(page: str, letter: str) -> str:
    return re.split(r"^## ", page, flags=re.MULTILINE)[2:][list(EXPERIMENTS).index(letter)]


@pytest.fixture
def book(tmp_path: Path) -> ScoreBook:
    return ScoreBook(tmp_path / "book")


def written(book: ScoreBook, folder: Path) -> str:
    write_page(folder, book, SEEDS, is_quick=False)
    return (folder / "experiments.md").read_text("utf-8")


def test_a_claim_in_the_numbers_is_told_in_words(book: ScoreBook, tmp_path: Path):
    fill(book, "c", {"no class images": 0.1, "60 images, weight 1": 0.9})
    told = section(written(book, tmp_path), "c")
    row = "| 60 class images of weight 1 keep more of the class than none | class kept | "
    assert row + "+0.80 | 0.04 | 3 | shown |" in told
    assert "they keep it more diverse (not shown)" in told
    assert "| no class images | 0.51 (0.50 to 0.52) | " in told
    assert "0.91 (0.90 to 0.92)" in told


def test_what_was_looked_up_afterwards_is_told_apart(book: ScoreBook, tmp_path: Path):
    fill(book, "c", {"no class images": 0.1, "6 images, weight 1": 0.9})
    claim, afterwards = section(written(book, tmp_path), "c").split("Looked up when the results")
    row = "| 6 class images keep more of the class than none, over both weights | class kept | "
    assert row not in claim
    assert row + "+0.60 | 0.04 | 3 | yes |" in afterwards


def test_what_was_not_run_is_said(book: ScoreBook, tmp_path: Path):
    fill(book, "c", {}, seeds=(0, 1))
    page = written(book, tmp_path)
    for letter in EXPERIMENTS:
        if letter not in "c":
            assert "Not decided yet" in section(page, letter), letter
    assert "Not run yet." in section(page, "f")
    assert "| too few seeds |" in section(page, "c")
    measured = len(EXPERIMENTS["c"].points) * 2
    assert f"**Not finished: {measured} of the " in page


def test_every_link_leads_somewhere_and_every_picture_is_whole(book: ScoreBook, tmp_path: Path):
    for letter in EXPERIMENTS:
        fill(book, letter, {})
    page = written(book, tmp_path)
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) <= anchors
    files = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)
    assert len(files) == 2 * len(EXPERIMENTS)
    for file in files:
        with Image.open(tmp_path / file) as image:
            image.load()
            assert min(image.size) > 150
    assert "Not finished" not in page


def test_tables_are_well_formed(book: ScoreBook, tmp_path: Path):
    for letter in EXPERIMENTS:
        fill(book, letter, {})
    blocks = re.split(r"\n\n+", written(book, tmp_path))
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    num_afterwards = sum(bool(experiment.afterwards) for experiment in EXPERIMENTS.values())
    assert len(tables) == 1 + 2 * len(EXPERIMENTS) + num_afterwards
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table[0]
