"""The commands `compare` and `score`, checked against the functions that they call."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import families, toy
from trainer.__main__ import main
from trainer.evaluation.scores import ImageScorer, table
from trainer.sampling.sampler import sample
from trainer.settings.config import SamplingConfig
from trainer.toy.judge import Judge

PROMPT = "a photo of a red cup"


@pytest.fixture
def comparison(tiny_checkpoint, tmp_path) -> list[str]:
    """The arguments of a small comparison without scores."""
    return [
        "compare", "--checkpoints", str(tiny_checkpoint), str(tiny_checkpoint), "--prompts",
        "a cup", PROMPT, "--schedulers", "DDIM", "PNDM", "--steps", "2", "4", "--seed", "5",
        "--folder", str(tmp_path / "made"), "--device", "cpu",
    ]  # fmt: skip


def photos() -> list[np.ndarray]:
    return [np.asarray(Image.open(path)) for path in sorted(toy.PHOTOS.glob("*.png"))]


def draw(checkpoint: Path, sampling: SamplingConfig) -> list[np.ndarray]:
    return sample(families.load(checkpoint, torch.device("cpu")), ["a cup", PROMPT], sampling)


def test_compare_generates_every_combination_and_overwrites_nothing(
    comparison, tiny_checkpoint, tmp_path
):
    for _ in range(2):
        assert main(comparison) == 0
    folder = tmp_path / "made"
    assert sorted(path.name for path in folder.iterdir()) == [
        "grid.png", "grid_1.png", "scores.json", "scores_1.json",
    ]  # fmt: skip
    noted = json.loads((folder / "scores.json").read_text("utf-8"))
    assert noted["prompts"] == ["a cup", PROMPT]
    assert noted["rows"] == [
        {"checkpoint": name, "scheduler": scheduler, "steps": steps}
        for name in ("tiny", "tiny (2)") for scheduler in ("DDIM", "PNDM") for steps in (2, 4)
    ]  # fmt: skip
    # The last image of the grid, enlarged eightfold.
    drawn = draw(tiny_checkpoint, SamplingConfig(scheduler="PNDM", steps=4, seed=5))[1]
    grid = np.asarray(Image.open(folder / "grid.png"))
    corner = grid[-8 - 128 :, -8 - 128 : -8]
    places = [at for at in range(9) if np.array_equal(corner[at : at + 128 : 8, ::8], drawn)]
    assert places


def test_compare_scores_images(comparison, tiny_checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    comparison[comparison.index("a cup") + 1 :] = [
        PROMPT, "--folder", str(tmp_path / "made"), "--device", "cpu", "--steps", "2",
        "--judge", "toy", "--photos", str(toy.PHOTOS),
    ]  # fmt: skip
    assert main(comparison) == 0
    image_scorer = ImageScorer(Judge(), photos(), ["a cup", PROMPT])
    means = image_scorer.score(draw(tiny_checkpoint, SamplingConfig(steps=2))).means
    noted = json.loads((tmp_path / "made" / "scores.json").read_text("utf-8"))
    for row in noted["rows"]:
        assert {name: row[name] for name in means} == pytest.approx(means, abs=1e-5)
    assert (tmp_path / "made" / "chart.png").exists()
    assert any("subject fidelity" in message for message in caplog.messages)


@pytest.mark.parametrize("given", [["--judge", "toy"], ["--photos", str(toy.PHOTOS)]])
def test_judge_and_photos_need_each_other(comparison, caplog, given):
    assert main([*comparison, *given]) == 1
    assert caplog.messages[-1] == (
        "Scoring compares images with photos of the subject, so --judge and --photos go together. "
        "Give both, or neither."
    )


def test_score_prints_the_scores_and_writes_files_only_with_a_folder(tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.chdir(tmp_path)
    files = sorted(toy.PHOTOS.glob("*.png"))[:2]
    arguments = [
        "score", "--images", *map(str, files), "--photos", str(toy.PHOTOS), "--judge", "toy",
        "--prompts", PROMPT, "--device", "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    scores = ImageScorer(Judge(), photos(), [PROMPT]).score(photos()[:2])
    assert caplog.messages[-1] == table(scores.rows([path.name for path in files]))
    assert list(tmp_path.iterdir()) == []
    assert main([*arguments, "--folder", str(tmp_path / "made")]) == 0
    noted = json.loads((tmp_path / "made" / "scores.json").read_text("utf-8"))["scores"]
    assert noted["mean"] == pytest.approx(dict(scores.means))
    assert noted[files[1].name]["memorisation"] == pytest.approx(1, abs=1e-5)
    assert (tmp_path / "made" / "chart.png").exists()


def test_score_reports_a_folder_without_images(tmp_path, caplog):
    (tmp_path / "empty").mkdir()
    arguments = ["score", "--images", str(tmp_path / "empty"), "--photos", str(toy.PHOTOS)]
    assert main([*arguments, "--judge", "toy", "--device", "cpu"]) == 1
    assert caplog.messages[-1].startswith(f"No images in {tmp_path / 'empty'}.")
