"""What differs between two checkpoints, weight by weight."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.conversion.models import CPU, changed, converted, metadata_of
from trainer.conversion.pairs import Model, ModelPair
from trainer.observer import Observer


def changes(base, trained):
    return list(ModelPair(Model(base), Model(trained)).changes(CPU, Observer()))


def add_one_to(*keys):
    return lambda key, tensor: tensor + 1 if key.endswith(keys) else tensor


def test_a_change_belongs_to_its_layer_or_is_of_a_kind(tiny_checkpoint, tmp_path):
    base = tiny_checkpoint
    for end, kind in {
        "middle_block.1.proj_in.bias": "biases and norms",
        "middle_block.1.norm.weight": "biases and norms",
        "token_embedding.weight": "token embeddings",
        "position_embedding.weight": "other weights",
        "decoder.conv_out.weight": "VAE",
    }.items():
        (found,) = changes(base, changed(base, tmp_path / "trained.safetensors", add_one_to(end)))
        assert (found.layer, found.kind) == (None, kind)
        assert found.squares == pytest.approx(found.difference.numel(), rel=1e-6)
    end = "middle_block.1.proj_in.weight"
    (found,) = changes(base, changed(base, tmp_path / "trained.safetensors", add_one_to(end)))
    assert found.layer.name == "lora_unet_mid_block_attentions_0_proj_in"
    assert found.difference.dtype == torch.float64


def test_a_third_of_a_fused_weight_is_a_layer(tiny_sd2_checkpoint, tmp_path):
    end = "resblocks.1.attn.in_proj_weight"

    def change(key, tensor):
        if not key.endswith(end):
            return tensor
        query, keys, values = tensor.chunk(3)
        return torch.cat([query, keys + 2, values])

    trained = changed(tiny_sd2_checkpoint, tmp_path / "trained.safetensors", change)
    (found,) = changes(tiny_sd2_checkpoint, trained)
    assert found.layer.path.endswith("encoder.layers.1.self_attn.k_proj")
    assert (found.difference - 2).abs().max() < 1e-6


def test_files_with_other_names_for_the_same_weights_are_compared(tiny_sd2_checkpoint, tmp_path):
    """Some checkpoints of Stable Diffusion 2 name their text encoder as XL's do."""
    renamed = {
        key.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): tensor
        for key, tensor in load_file(tiny_sd2_checkpoint).items()
    }
    path = tmp_path / "renamed.safetensors"
    save_file(renamed, path, metadata=metadata_of(tiny_sd2_checkpoint))
    assert changes(tiny_sd2_checkpoint, path) == []


def test_rounding_to_the_coarser_numbers_is_no_change(tiny_checkpoint, tmp_path):
    """In either direction; but a weight that rounds to another number is one."""
    for dtype in (torch.float8_e4m3fn, torch.float16, torch.bfloat16):
        coarse = converted(tiny_checkpoint, tmp_path / "coarse.safetensors", dtype)
        assert changes(tiny_checkpoint, coarse) == []
        assert changes(coarse, tiny_checkpoint) == []
    end = "middle_block.1.proj_in.weight"
    other = changed(coarse, tmp_path / "other.safetensors", add_one_to(end))
    assert len(changes(tiny_checkpoint, other)) == len(changes(other, tiny_checkpoint)) == 1
