"""Compared with the names in the published Stable Diffusion 1.5 file, and with diffusers' own
independent conversion of such files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.families import key_maps
from trainer.families.key_maps import Place
from trainer.families.sd1 import SD1, TEXT
from trainer.toy import recipe

SD15_NAMES = {
    "model.diffusion_model.time_embed.0.weight": (1280, 320),
    "model.diffusion_model.time_embed.2.bias": (1280,),
    "model.diffusion_model.input_blocks.0.0.weight": (320, 4, 3, 3),
    "model.diffusion_model.input_blocks.1.0.in_layers.0.weight": (320,),
    "model.diffusion_model.input_blocks.1.0.emb_layers.1.weight": (320, 1280),
    "model.diffusion_model.input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn1.to_out.0.bias": (320,),
    "model.diffusion_model.input_blocks.3.0.op.weight": (320, 320, 3, 3),
    "model.diffusion_model.input_blocks.4.0.skip_connection.weight": (640, 320, 1, 1),
    "model.diffusion_model.input_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight": (
        10240,
        1280,
    ),
    "model.diffusion_model.input_blocks.9.0.op.bias": (1280,),
    "model.diffusion_model.input_blocks.11.0.out_layers.3.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.middle_block.0.in_layers.2.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
    "model.diffusion_model.middle_block.2.out_layers.0.bias": (1280,),
    "model.diffusion_model.output_blocks.0.0.skip_connection.weight": (1280, 2560, 1, 1),
    "model.diffusion_model.output_blocks.2.1.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.3.1.norm.weight": (1280,),
    "model.diffusion_model.output_blocks.5.2.conv.weight": (1280, 1280, 3, 3),
    "model.diffusion_model.output_blocks.8.2.conv.bias": (640,),
    "model.diffusion_model.output_blocks.9.0.in_layers.2.weight": (320, 960, 3, 3),
    "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": (320, 768),
    "model.diffusion_model.out.0.weight": (320,),
    "model.diffusion_model.out.2.weight": (4, 320, 3, 3),
    "first_stage_model.encoder.conv_in.weight": (128, 3, 3, 3),
    "first_stage_model.encoder.down.0.downsample.conv.weight": (128, 128, 3, 3),
    "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": (256, 128, 1, 1),
    "first_stage_model.encoder.down.3.block.1.norm2.bias": (512,),
    "first_stage_model.encoder.mid.block_1.conv1.weight": (512, 512, 3, 3),
    "first_stage_model.encoder.mid.attn_1.q.weight": (512, 512, 1, 1),
    "first_stage_model.encoder.norm_out.weight": (512,),
    "first_stage_model.encoder.conv_out.weight": (8, 512, 3, 3),
    "first_stage_model.quant_conv.weight": (8, 8, 1, 1),
    "first_stage_model.post_quant_conv.bias": (4,),
    "first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3),
    "first_stage_model.decoder.mid.attn_1.norm.bias": (512,),
    "first_stage_model.decoder.mid.attn_1.proj_out.weight": (512, 512, 1, 1),
    "first_stage_model.decoder.mid.block_2.conv2.bias": (512,),
    "first_stage_model.decoder.up.0.block.0.nin_shortcut.weight": (128, 256, 1, 1),
    "first_stage_model.decoder.up.0.block.2.conv1.weight": (128, 128, 3, 3),
    "first_stage_model.decoder.up.3.upsample.conv.weight": (512, 512, 3, 3),
    "first_stage_model.decoder.conv_out.bias": (3,),
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": (49408, 768),
    "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight": (77, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768),
    "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc2.weight": (768, 3072),
    "cond_stage_model.transformer.text_model.encoder.layers.5.layer_norm2.bias": (768,),
    "cond_stage_model.transformer.text_model.final_layer_norm.weight": (768,),
}

Networks = tuple[nn.Module, nn.Module, nn.Module]


@pytest.fixture(params=["four levels", "toy", "tiny"])
def networks(
    request: pytest.FixtureRequest,
    build_networks: Callable[..., Networks],
    four_levels: dict[str, dict[str, Any]],
    tiny_networks: Networks,
) -> Iterator[Networks]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if request.param == "four levels":
            yield build_networks(**four_levels)
        elif request.param == "toy":
            yield recipe.build_unet(), recipe.build_vae(), recipe.build_text_encoder()
        else:
            yield tiny_networks


def test_stable_diffusion_15_gets_its_published_names() -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):  # 860 million weights, and no memory
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        )
    tensors = SD1.checkpoint_tensors(unet, vae, text_encoder)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert {name: shapes.get(name) for name in SD15_NAMES} == SD15_NAMES
    prefixes = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.")
    counts = [sum(name.startswith(prefix) for name in shapes) for prefix in prefixes]
    assert counts == [686, 248, 196]
    assert sum(tensor.numel() for tensor in tensors.values()) == 1_066_235_307


def test_no_two_weights_get_the_same_name(networks: Networks) -> None:
    unet, vae, text_encoder = networks
    for names in (
        key_maps.unet_places(unet.state_dict()),
        key_maps.vae_places(vae.state_dict()),
        key_maps.clip_places(text_encoder.state_dict(), TEXT),
    ):
        assert len(set(names.values())) == len(names)


def assert_same_tensors(converted: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    assert converted.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(converted[name], tensor), name


def test_diffusers_reads_the_unet_back(networks: Networks) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    converted = convert_ldm_unet_checkpoint(SD1.checkpoint_tensors(*networks), networks[0].config)
    assert_same_tensors(converted, networks[0].state_dict())


def test_diffusers_reads_the_vae_back(networks: Networks) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    converted = convert_ldm_vae_checkpoint(SD1.checkpoint_tensors(*networks), networks[1].config)
    assert_same_tensors(converted, networks[1].state_dict())


def test_diffusers_reads_the_text_encoder_back(networks: Networks) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}

    converted = convert_ldm_clip_checkpoint(SD1.checkpoint_tensors(*networks))
    assert_same_tensors(bare(converted), bare(networks[2].state_dict()))


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_text_encoder_names_with_and_without_text_model(prefix: str) -> None:
    names = key_maps.clip_places([f"{prefix}final_layer_norm.bias"], TEXT)
    (place,) = names.values()
    assert place == Place("cond_stage_model.transformer.text_model.final_layer_norm.bias")


def test_1x1_convolutions_match_linear_layers_and_nothing_else_does() -> None:
    assert Place("a").file_shapes((8, 4)) == [(8, 4), (8, 4, 1, 1)]
    assert Place("a").file_shapes((8, 4, 1, 1)) == [(8, 4, 1, 1)]
    assert Place("a").file_shapes((8,)) == [(8,)]
