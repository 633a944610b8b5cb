"""The page, from invented scores whose verdicts are known."""

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
CLASS_KEPT = {"no class images": 0.1, "6 images, weight 1": 0.9, "60 images, weight 1": 0.9}
"""By the models of experiment c."""


def fill(book: ScoreBook, letter: str, value_of: dict[str, float], seeds=SEEDS) -> None:
    """Scores of an experiment: everything is 0.5 and varies by 0.01, except what is named."""
    images = [np.full((64, 64, 3), 25 * shade, np.uint8) for shade in range(10)]
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


def written(book: ScoreBook, folder: Path) -> str:
    write_page(folder, book, SEEDS, is_quick=False)
    return (folder / "experiments.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the page, with all experiments measured."""
    folder = tmp_path_factory.mktemp("whole")
    book = ScoreBook(folder / "book")
    for letter in EXPERIMENTS:
        fill(book, letter, {})
    fill(book, "c", CLASS_KEPT)  # last: others share its models
    written(book, folder)
    return folder


@pytest.fixture
def page(folder: Path) -> str:
    return (folder / "experiments.md").read_text("utf-8")


def test_a_claim_that_the_numbers_show_is_reported(page: str):
    reported = section(page, "c")
    row = "| 60 class images of weight 1 keep more of the class than none | class kept | "
    assert row + "+0.80 | 0.04 | 3 | shown |" in reported
    assert "they keep it more diverse (not shown)" in reported
    assert "| no class images | 0.51 (0.50 to 0.52) | " in reported
    assert "0.91 (0.90 to 0.92)" in reported


def test_the_page_in_docs_has_the_texts_of_the_program():
    page = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text("utf-8")
    for letter, experiment in EXPERIMENTS.items():
        parts = [found.part for found in [*experiment.comparisons, *experiment.afterwards]]
        texts = [experiment.claim, experiment.setting, experiment.remark, *parts]
        missing = [text for text in texts if text not in section(page, letter)]
        assert missing == [], letter


def test_comparisons_that_were_chosen_afterwards_are_separate(page: str):
    claim, afterwards = section(page, "c").split("These comparisons were chosen after the results")
    row = "| 6 class images keep more of the class than none, over both weights | class kept | "
    assert row not in claim
    assert row + "+0.60 | 0.04 | 3 | yes |" in afterwards


def test_missing_runs_are_reported(tmp_path: Path):
    book = ScoreBook(tmp_path / "book")
    fill(book, "c", {}, seeds=(0, 1))
    page = written(book, tmp_path)
    for letter in EXPERIMENTS:
        if letter not in "c":
            assert "Not decided yet" in section(page, letter), letter
    assert "Not run yet." in section(page, "f")
    assert "| too few seeds |" in section(page, "c")
    measured = len(EXPERIMENTS["c"].points) * 2
    assert f"**Not finished: {measured} of " in page


def test_an_experiment_without_scores_keeps_its_section(tmp_path: Path):
    """So that one can be added by a computer that has no scores of the others."""
    book = ScoreBook(tmp_path / "first")
    fill(book, "c", CLASS_KEPT)
    before = written(book, tmp_path)
    other = ScoreBook(tmp_path / "second")
    fill(other, "f", {}, seeds=(0, 1, 2))
    after = written(other, tmp_path)
    assert section(after, "c") == section(before, "c")
    assert "Not run yet." in section(before, "f")
    assert "Not run yet." not in section(after, "f")
    assert re.search(r"\| \[c\. .* \| shows 2 of 4 parts of the claim \| all \|", after)
    assert "| [f. " in after
    assert after.count("## c. ") == after.count("## f. ") == 1
    assert re.findall(r"^Training.* took (\d+)", after, re.MULTILINE) == ["15", "6"]
    assert written(other, tmp_path) == after


def test_scores_of_shared_models_leave_other_experiments_alone(tmp_path: Path):
    """Experiments m and c have a model in common."""
    book = ScoreBook(tmp_path / "first")
    fill(book, "c", CLASS_KEPT)
    before = written(book, tmp_path)
    other = ScoreBook(tmp_path / "second")
    fill(other, "m", {})
    write_page(tmp_path, other, SEEDS, "m", is_quick=False)
    after = (tmp_path / "experiments.md").read_text("utf-8")
    assert section(after, "c") == section(before, "c")
    assert "Not run yet." not in section(after, "m")


def test_every_link_has_a_target_and_every_image_is_complete(folder: Path, page: str):
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    links = set(re.findall(r"\]\(#([^)]*)\)", page))
    assert len(links) == len(EXPERIMENTS)
    assert links <= anchors
    files = re.findall(r"!\[[^]]*\]\(([^)]*)\)", page)
    assert len(files) == 2 * len(EXPERIMENTS)
    for file in files:
        with Image.open(folder / file) as image:
            image.load()
            assert min(image.size) > 150
    assert "Not finished" not in page


def test_tables_are_well_formed(page: str):
    blocks = re.split(r"\n\n+", page)
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    num_afterwards = sum(bool(experiment.afterwards) for experiment in EXPERIMENTS.values())
    assert len(tables) == 1 + 2 * len(EXPERIMENTS) + num_afterwards
    for table in tables:
        assert len({line.count("|") for line in table}) == 1, table[0]
