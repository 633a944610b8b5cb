"""The layers that a LoRA can change, and their names. tests/nodes/test_lora_files.py compares them
with ComfyUI's."""

import torch
from torch import nn

from trainer import families
from trainer.families.lora_layers import LoraLayer

CPU = torch.device("cpu")


def layers_of(path) -> list[LoraLayer]:
    return families.load(path, CPU).lora_layers()


def test_all_linear_layers_and_convolutions_are_found(tiny_model, xl_model):
    for model in (tiny_model, xl_model):
        layers = model.lora_layers()
        unet = [m for m in model.unet.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        assert [layer.module for layer in layers if layer.part == "unet"] == unet
        for part, encoder in [*model.parts().items()][1:]:
            found = {layer.module for layer in layers if layer.part == part}
            modules = {m for m in encoder.modules() if isinstance(m, nn.Linear)}
            # The projection of the pooled output has no name in LoRA files.
            assert modules - found == {getattr(encoder, "text_projection", None)} - {None}


def test_names_are_those_of_kohya(tiny_model, tiny_sd2_checkpoint, xl_model):
    """Of diffusers' modules, but for XL of the checkpoint's weights."""
    query = "transformer_blocks_0_attn1_to_q"
    names = [[layer.name for layer in model.lora_layers()] for model in (
        tiny_model, families.load(tiny_sd2_checkpoint, CPU), xl_model,
    )]  # fmt: skip
    text = "text_model_encoder_layers_1_self_attn_out_proj"
    for found in names:
        assert len({*found}) == len(found)
    for found in names[:2]:
        assert f"lora_unet_down_blocks_0_attentions_0_{query}" in found
        assert "lora_unet_down_blocks_0_resnets_0_conv1" in found
        assert f"lora_te_{text.replace('1', '0')}" in found
    assert any(name.startswith("lora_unet_input_blocks_") and query in name for name in names[2])
    assert {f"lora_te1_{text}", f"lora_te2_{text}"} <= {*names[2]}


def test_names_of_other_programs_are_known(tiny_model, xl_model):
    for model in (tiny_model, xl_model):
        known = [name for layer in model.lora_layers() for name in layer.names]
        assert len({*known}) == len(known)
        assert "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0" in known
        assert "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_out_0" in known
        assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0" in known
        assert "text_encoder.text_model.encoder.layers.0.mlp.fc1" in known
        assert "lora_te1_text_model_encoder_layers_0_mlp_fc1" in known
    assert "text_encoder_2.text_model.encoder.layers.0.mlp.fc1" in known


def test_layers_of_attention_are_told_from_others(tiny_model):
    inside = {layer.path for layer in tiny_model.lora_layers() if layer.is_in_transformer}
    assert "mid_block.attentions.0.proj_in" in inside
    assert any(path.endswith("encoder.layers.0.mlp.fc2") for path in inside)
    assert inside.isdisjoint({"conv_in", "time_embedding.linear_1", "mid_block.resnets.0.conv1"})


def test_shapes_are_those_of_the_weights(xl_model):
    for layer in xl_model.lora_layers():
        key, shapes = layer.place.key, layer.place.file_shapes(layer.shape)
        assert xl_model.source.shapes[key] in shapes
