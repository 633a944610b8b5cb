"""Results of runs, recorded and recalled."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer.observer import ScoreReport
from trainer.runs import results
from trainer.runs.identity import Hashes

PREVIEWS = [np.zeros((2, 2, 3), np.uint8)]


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    made = {kind: tmp_path / f"{kind}.safetensors" for kind in ("checkpoint", "embedding")}
    for number, path in enumerate(made.values()):
        save_file({"weight": torch.full((10,), float(number))}, path)
    return made


@pytest.fixture
def hashes(tmp_path) -> Hashes:
    return Hashes(tmp_path / "hashes.json")


def result(files: dict[str, Path], **more: object) -> results.TrainingResult:
    return results.TrainingResult(files, 3, 6, [], {"unet": (0.25, 0.5)}, PREVIEWS, **more)


def score(step: int, balance: float) -> ScoreReport:
    return ScoreReport(
        step=step, subject=0.5, prompt=0.5, prior=0.5, learned=balance, prompts_kept=None,
        class_kept=None, balance=balance,
    )  # fmt: skip


def recorded(made: results.TrainingResult, hashes: Hashes) -> dict[str, Any]:
    return json.loads(json.dumps(results.record(made, hashes)))


def test_a_recorded_result_is_recalled(files, hashes):
    record = recorded(result(files), hashes)
    found = results.recall(record, [], PREVIEWS, [])
    assert found == result(files, scores=[], saves=[], reused=True)
    assert (found.checkpoint, found.embedding) == (files["checkpoint"], files["embedding"])
    assert (found.best_checkpoint, found.best_step) == (files["checkpoint"], None)
    assert results.changed_file(record, hashes) is None


def test_saves_are_recalled_if_they_still_exist(files, hashes, tmp_path):
    saves = [{"checkpoint": tmp_path / f"{step}.safetensors"} for step in (1, 2)]
    for save in saves:
        save["checkpoint"].touch()
    record = recorded(result(files, saves=saves), hashes)
    assert results.recall(record, [], PREVIEWS, []).saves == saves
    saves[0]["checkpoint"].unlink()
    assert results.recall(record, [], PREVIEWS, []).saves == saves[1:]


def test_the_best_checkpoint_is_recalled_if_it_still_exists(files, hashes, tmp_path):
    best = {"checkpoint": tmp_path / "best.safetensors"}
    best["checkpoint"].touch()
    scores = [score(0, 0), score(1, 0.7), score(2, 0.7), score(3, 0.2)]
    record = recorded(result(files, best=best, scores=scores), hashes)
    found = results.recall(record, [], PREVIEWS, scores)
    assert (found.best_checkpoint, found.best_step) == (best["checkpoint"], 1)
    best["checkpoint"].unlink()
    assert results.changed_file(record, hashes) is None
    found = results.recall(record, [], PREVIEWS, scores)
    assert (found.best_checkpoint, found.best_step) == (files["checkpoint"], 1)


@pytest.mark.parametrize("fate", ["missing", "changed", "no checkpoint"])
def test_a_missing_or_changed_file_is_named(files, hashes, fate):
    record = recorded(result(files), hashes)
    path = files["embedding"]
    if fate == "changed":
        save_file({"weight": torch.full((10,), 2.0)}, path)
        os.utime(path, (1, 1))
    elif fate == "missing":
        path.unlink()
    else:
        path.write_bytes(b"note")
    assert results.changed_file(record, hashes) == str(path)
