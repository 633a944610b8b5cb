"""Results of runs, recorded and found again."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer import results
from trainer.identity import Hashes


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    made = {kind: tmp_path / f"{kind}.safetensors" for kind in ("checkpoint", "embedding")}
    for number, path in enumerate(made.values()):
        save_file({"weight": torch.full((10,), float(number))}, path)
    return made


@pytest.fixture
def hashes(tmp_path) -> Hashes:
    return Hashes(tmp_path / "hashes.json")


def test_a_result_comes_back_as_it_was_recorded(files, hashes):
    moved = {"unet": (0.25, 0.5)}
    record = results.record(files, moved, steps=3, total_steps=6, hashes=hashes)
    record = json.loads(json.dumps(record))
    previews = [np.zeros((2, 2, 3), np.uint8)]
    found = results.recall(record, [], previews)
    assert found == results.TrainingResult(files, 3, 6, [], moved, previews, reused=True)
    assert (found.checkpoint, found.embedding) == (files["checkpoint"], files["embedding"])
    assert results.changed_file(record, hashes) is None


@pytest.mark.parametrize("fate", ["gone", "another", "no checkpoint"])
def test_a_file_that_is_no_longer_the_one_is_named(files, hashes, fate):
    record = results.record(files, {}, steps=6, total_steps=6, hashes=hashes)
    path = files["embedding"]
    if fate == "another":
        save_file({"weight": torch.full((10,), 2.0)}, path)
        os.utime(path, (1, 1))
    elif fate == "gone":
        path.unlink()
    else:
        path.write_bytes(b"note")
    assert results.changed_file(record, hashes) == str(path)
