"""What all generations have in common. Each is compared with diffusers in its own test module."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.families import generations
from trainer import families
from trainer.families.base import Conditioning, Framing

CPU = torch.device("cpu")
CHECKPOINTS = ["tiny_checkpoint", "tiny_sd2_checkpoint", "tiny_xl_checkpoint"]


@pytest.mark.parametrize("fixture", CHECKPOINTS)
def test_every_part_is_loaded_in_the_order_of_the_networks(request, fixture):
    model = families.load(request.getfixturevalue(fixture), CPU)
    parts = model.parts()
    assert list(parts) == ["unet", "text_encoder", "text_encoder_2"][: len(parts)]
    assert len(parts) == 1 + len(model.encoders)
    keys = [key for part in parts for key in model.file_tensors(part)]
    assert len(keys) == len(set(keys))
    assert all(model.source.shapes[key] for key in keys)


@pytest.mark.parametrize("fixture", CHECKPOINTS)
@torch.no_grad()
def test_stacked_conditioning_predicts_the_same_as_one_by_one(request, fixture):
    model = families.load(request.getfixturevalue(fixture), CPU)
    captions, framings = ["a dog", "a red cup"], [
        Framing((64, 48), (0, 0), (16, 16)), Framing((16, 16), (1, 2), (16, 16)),
    ]  # fmt: skip
    noisy, times = torch.randn(2, 4, 8, 8), torch.tensor([3, 900])
    both = model.with_framings(model.encode_captions(captions), framings)
    single = [
        model.with_framings(model.encode_captions([caption]), [framing])
        for caption, framing in zip(captions, framings, strict=True)
    ]
    stacked = Conditioning.stack(single)
    assert stacked.added.keys() == both.added.keys()
    expected = model.predict(noisy, times, both)
    torch.testing.assert_close(model.predict(noisy, times, stacked), expected)
    for n, one in enumerate(single):
        found = model.predict(noisy[n, None], times[n, None], one)
        torch.testing.assert_close(found[0], expected[n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fixture", "prefix", "message"),
    [
        (
            "tiny_xl_checkpoint",
            "conditioner.embedders.1.",
            "has no text encoder clip_g, but U-Net, VAE and text encoders are all needed. Choose a "
            "complete Stable Diffusion XL checkpoint.",
        ),
        (
            "tiny_sd2_checkpoint",
            "cond_stage_model.",
            "has no text encoder, but U-Net, VAE and text encoder are all needed. Choose a "
            "complete Stable Diffusion 2 checkpoint.",
        ),
        (
            "tiny_xl_checkpoint",
            "first_stage_model.",
            "has no VAE. Name the file of one for Stable Diffusion XL with --vae; in ComfyUI, load "
            "both with ComfyUI's Load Checkpoint and Load VAE, and connect them to Model from "
            "Graph. Or choose a complete checkpoint.",
        ),
    ],
)
def test_a_missing_part_is_named(request, tmp_path, fixture, prefix, message):
    tensors = load_file(request.getfixturevalue(fixture))
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(tmp_path / "model.safetensors", CPU)
    assert str(error.value) == f"'model.safetensors' {message}"


def test_additions_to_the_unet_are_refused(tmp_path):
    added = {"model.diffusion_model.adapter.weight": torch.zeros(3)}
    generations.write(tmp_path / "model.safetensors", "XL", more=added)
    with pytest.raises(ValueError, match="which a Stable Diffusion XL U-Net does not have"):
        families.load(tmp_path / "model.safetensors", CPU)
