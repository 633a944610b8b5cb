"""Weights that are split among processes. Whole runs are in `test_data_parallel.py` and
`../test_follower.py`."""

import json

import pytest
import torch

from tests.trainer.torchrun import torchrun
from tests.trainer.training.sessions import begin
from trainer.families.shapes import SD15, SDXL
from trainer.training.sharding import LARGEST_SHARE, _modules_to_split


def test_each_of_two_processes_has_its_rows_and_the_leader_can_have_all():
    done = torchrun(2, "-m", "tests.trainer.training.split_weights")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "rows": [3, 3, 2, 2],
        "weights are whole": True,
        "gradients are sums": True,
        "own parts come back": True,
        "the rest stays": True,
        "inside": [[5, 4], [5], [3, 5], [3]],
        "can be read": True,
        "same outcome": True,
        "rows after": [3, 3, 2, 2],
    }


@pytest.mark.parametrize("model", [SD15, SDXL], ids=["1.5", "XL"])
def test_modules_are_exchanged_that_are_called_and_have_few_weights(model):
    with torch.device("meta"):
        unet = model.unet.build()
    modules = list(_modules_to_split(unet))
    weights = [id(p) for module in modules for p in module.parameters()]
    assert len(weights) == len(set(weights))
    assert not any(isinstance(module, torch.nn.ModuleList) for module in modules)
    total = sum(p.numel() for p in unet.parameters())
    sizes = [sum(p.numel() for p in module.parameters()) for module in modules]
    assert max(sizes) <= total * LARGEST_SHARE
    assert sum(sizes) > 0.98 * total


def test_a_process_that_trains_alone_says_that_nothing_is_split(tiny_model, caplog):
    session = begin(tiny_model, sharded=True)
    assert "sharded has no effect, because this process trains alone." in caplog.text
    assert session.step() is not None
