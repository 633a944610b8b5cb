"""Train on real photos from the command line. The model has Stable Diffusion 1.5's widths, random
weights and fewer layers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.random_networks import SD15_TWO_LEVELS
from trainer.__main__ import main

PHOTOS = Path(__file__).parents[3] / "shared" / "photos" / "dog6"


@pytest.fixture(scope="module")
def checkpoint(save_fp16_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("real") / "sd15.safetensors"
    return save_fp16_checkpoint(SD15_TWO_LEVELS, path)


@pytest.mark.skipif(not PHOTOS.exists(), reason="no shared photos beside the checkout")
def test_training_on_real_photos_keeps_the_layout_of_the_base_checkpoint(checkpoint, tmp_path):
    code = main(
        [
            "train", "--base", str(checkpoint), "--dataset.photos", str(PHOTOS),
            "--dataset.prompt", "a photo of sks dog", "--dataset.resolution", "64",
            "--output.folder", str(tmp_path), "--output.name", "dog", "--steps", "2",
            "--batch-size", "1", "--optimizer.learning-rate", "1e-3", "--device", "cpu",
        ]
    )  # fmt: skip
    assert code == 0
    before, after = load_file(checkpoint), load_file(tmp_path / "dog.safetensors")
    assert list(after) == list(before)
    changed = set()
    for name, tensor in before.items():
        assert (after[name].shape, after[name].dtype) == (tensor.shape, torch.float16)
        if not torch.equal(after[name], tensor):
            changed.add(name)
    assert changed
    assert all(name.startswith("model.diffusion_model.") for name in changed)
    assert len(changed) > 0.95 * sum(name.startswith("model.diffusion_model.") for name in before)
