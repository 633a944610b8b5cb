"""Stable Diffusion 1.5's own widths, with random weights made here, two levels of the U-Net and two
layers of the text encoder: real photos through the command line to a file of the same layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.__main__ import main
from trainer.families.sd1 import checkpoint_tensors

PHOTOS = Path(__file__).parents[3] / "shared" / "photos" / "dog6"


@pytest.fixture(scope="module")
def checkpoint(build_networks, tmp_path_factory):
    networks = build_networks(
        unet={
            "block_out_channels": (320, 640),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 768,
        },
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        text_encoder={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 2},
    )
    path = tmp_path_factory.mktemp("real") / "sd15.safetensors"
    tensors = checkpoint_tensors(*networks)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.skipif(not PHOTOS.exists(), reason="no shared photos beside the checkout")
def test_real_photos_train_a_file_of_the_real_layout(checkpoint, tmp_path):
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
