"""Compared with modules built from explicit options, and with diffusers' own single-file reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer import families
from trainer.families.base import Conditioning
from trainer.families.sd1 import SD1
from trainer.families.tokenizer import ClipTokenizer
from trainer.toy import recipe

CPU = torch.device("cpu")
UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
Networks = tuple[nn.Module, nn.Module, nn.Module]
Options = dict[str, dict[str, Any]]

VARIANTS: dict[str, dict[str, Any]] = {
    "four levels": {},
    "one level": {
        "block_out_channels": (32,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
    },
    "no attention in the middle": {"mid_block_type": "UNetMidBlock2D"},
    "no middle": {"mid_block_type": None},
    "layers by level": {"layers_per_block": (1, 2, 1, 3)},
    "deeper attention": {
        "transformer_layers_per_block": (1, 2, 1, 2),
        "reverse_transformer_layers_per_block": (1, 1, 2, 1),
    },
}


def save(
    path: Path, networks: Networks, dtype: torch.dtype = torch.float32, **constants: object
) -> Path:
    tensors = SD1.checkpoint_tensors(*networks)
    metadata = {"dreambooth.constants": json.dumps(constants)}
    save_file({k: v.to(dtype).contiguous() for k, v in tensors.items()}, path, metadata=metadata)
    return path


def load(path: Path) -> SD1:
    model = families.load(path, CPU)
    assert isinstance(model, SD1)
    return model


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_computes_the_same(model: SD1, networks: Networks, scale: float = 0.18215) -> None:
    unet, vae, text_encoder = networks
    captions = ["a photo of sks dog", "a red cup"]
    ids = ClipTokenizer().encode(captions)
    side = 2 ** (len(unet.config.block_out_channels) - 1)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    noisy_latents, timesteps = draw(2, 4, 2 * side, 2 * side), torch.tensor([0, 999])
    pixels = draw(2, 3, 4 * factor, 4 * factor).clamp(-1, 1)
    with torch.no_grad():
        hidden = text_encoder(ids).last_hidden_state
        given = model.encode_captions(captions)
        prediction = model.predict(noisy_latents, timesteps, given)
        mean, std = model.encode_pixels(pixels)
        moments = vae.encode(pixels).latent_dist
        latents = scale * moments.mean
        for ours, theirs in [
            (given.hidden, hidden),
            (prediction, unet(noisy_latents, timesteps, hidden).sample),
            (mean, latents),
            (std, scale * moments.std),
            (model.decode_latents(latents), vae.decode(latents / scale).sample),
        ]:
            assert theirs.std() > 1e-3  # otherwise the comparison proves nothing
            assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_loaded_file_computes_the_same_as_its_networks(
    tmp_path: Path, build_networks: Callable[..., Networks], four_levels: Options, variant: str
) -> None:
    options = {**four_levels, "unet": {**four_levels["unet"], **VARIANTS[variant]}}
    networks = build_networks(**options)
    model = load(save(tmp_path / "model.safetensors", networks))
    assert_computes_the_same(model, networks)
    assert (model.latent_factor, model.native_resolution, model.latent_channels) == (8, 512, 4)


def test_a_vae_without_attention_computes_the_same(
    tmp_path: Path, build_networks: Callable[..., Networks], four_levels: Options
) -> None:
    options = {**four_levels, "vae": {**four_levels["vae"], "mid_block_add_attention": False}}
    networks = build_networks(**options)
    assert_computes_the_same(load(save(tmp_path / "model.safetensors", networks)), networks)


def test_the_toy_model_loads_the_same_way(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = recipe.build_unet(), recipe.build_vae(), recipe.build_text_encoder()
    for network in networks:
        network.eval()
    path = save(tmp_path / "toy.safetensors", networks, vae_norm_groups=8, resolution=64)
    model = load(path)
    assert_computes_the_same(model, networks)
    assert (model.latent_factor, model.native_resolution) == (4, 64)


def test_diffusers_own_reader_loads_the_same_unet_and_vae(
    tmp_path: Path, tiny_networks: Networks, tiny_checkpoint: Path
) -> None:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    model, read = load(tiny_checkpoint), []
    for name, kind, network in [
        ("unet", UNet2DConditionModel, tiny_networks[0]),
        ("vae", AutoencoderKL, tiny_networks[1]),
    ]:
        network.save_config(tmp_path / name)
        read.append(
            kind.from_single_file(
                str(tiny_checkpoint), config=str(tmp_path), subfolder=name, local_files_only=True
            )
        )
    hidden, timesteps = draw(2, 77, 24), torch.tensor([1, 500])
    noisy_latents, pixels = draw(2, 4, 8, 8), draw(2, 3, 16, 16)
    with torch.no_grad():
        ours = model.predict(noisy_latents, timesteps, Conditioning(hidden))
        theirs = read[0](noisy_latents, timesteps, hidden).sample
        assert (ours - theirs).abs().max() <= 1e-5
        assert (model.vae(pixels).sample - read[1](pixels).sample).abs().max() <= 1e-5


# ---------------------------------------------------------------- the file


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_tensor_survives_loading_unchanged(
    tmp_path: Path, tiny_networks: Networks, dtype: torch.dtype, ending: str
) -> None:
    tensors = {k: v.to(dtype) for k, v in SD1.checkpoint_tensors(*tiny_networks).items()}
    extras = {
        f"{CLIP}text_model.embeddings.position_ids": torch.arange(77)[None],
        f"{CLIP}text_projection.weight": draw(24, 24),
        "alphas_cumprod": draw(1000).double(),
        "first_stage_model.loss.logvar": draw(1),
    }
    tensors |= extras
    path = tmp_path / f"model{ending}"
    if ending == ".ckpt":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    model = load(path)
    trained = {**model.file_tensors("unet"), **model.file_tensors("text_encoder")}
    assert not trained.keys() & extras.keys()
    assert set(model.source.shapes) == set(tensors)
    for name, tensor in tensors.items():
        copied = model.source.tensor(name)
        assert copied.dtype == tensor.dtype
        assert torch.equal(copied, tensor), name
        if name in trained:
            assert torch.equal(trained[name].to(tensor.dtype), tensor), name


def test_a_file_of_mixed_number_formats_survives_loading_unchanged(
    tmp_path: Path, tiny_tensors: dict[str, Tensor]
) -> None:
    dtypes = [torch.float32, torch.float16, torch.bfloat16]
    mixed = {
        name: tensor.to(dtypes[number % 3])
        for number, (name, tensor) in enumerate(tiny_tensors.items())
    }
    save_file(mixed, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    for part in model.parts():
        for name, tensor in model.file_tensors(part).items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor.to(model.source.dtypes[name]), mixed[name])


def test_file_tensors_cover_the_unet_and_the_text_encoder(
    tiny_model: SD1, tiny_tensors: dict[str, Tensor]
) -> None:
    for part, prefix in (("unet", UNET), ("text_encoder", CLIP)):
        expected = {name for name in tiny_tensors if name.startswith(prefix)}
        assert set(tiny_model.file_tensors(part)) == expected


def test_file_tensors_are_the_current_weights(tiny_model: SD1) -> None:
    with torch.no_grad():
        tiny_model.unet.conv_out.bias.fill_(7)
        tiny_model.unet.up_blocks[0].upsamplers[0].conv.bias.fill_(8)
    tensors = tiny_model.file_tensors("unet")
    assert torch.equal(tensors[f"{UNET}out.2.bias"], torch.full((4,), 7.0))
    assert torch.equal(tensors[f"{UNET}output_blocks.1.1.conv.bias"], torch.full((64,), 8.0))
    assert not any(tensor.requires_grad for tensor in tensors.values())


def test_text_encoder_names_without_text_model_are_kept(
    tmp_path: Path, tiny_networks: Networks, tiny_tensors: dict[str, Tensor]
) -> None:
    renamed = {name.replace(".text_model.", "."): v for name, v in tiny_tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    assert_computes_the_same(model, tiny_networks)
    names = set(model.file_tensors("text_encoder"))
    assert names == {name for name in renamed if name.startswith(CLIP)}
    assert f"{CLIP}final_layer_norm.bias" in names


def test_linear_layers_in_the_vaes_attention_are_accepted(
    tmp_path: Path, tiny_networks: Networks, tiny_tensors: dict[str, Tensor]
) -> None:
    linear = {
        name: tensor[:, :, 0, 0].contiguous() if ".attn_1." in name and tensor.ndim == 4 else tensor
        for name, tensor in tiny_tensors.items()
    }
    save_file(linear, tmp_path / "model.safetensors")
    assert_computes_the_same(load(tmp_path / "model.safetensors"), tiny_networks)


def test_a_larger_vocabulary_keeps_its_size(
    tmp_path: Path, tiny_networks: Networks, tiny_tensors: dict[str, Tensor]
) -> None:
    key = f"{CLIP}text_model.embeddings.token_embedding.weight"
    larger = {**tiny_tensors, key: torch.cat([tiny_tensors[key], draw(2, 24)])}
    save_file(larger, tmp_path / "model.safetensors")
    model = load(tmp_path / "model.safetensors")
    assert_computes_the_same(model, tiny_networks)
    assert torch.equal(model.file_tensors("text_encoder")[key], larger[key])


# --------------------------------------------------------------- the model


def test_a_loaded_model_is_fp32_frozen_and_in_eval_mode(
    tmp_path: Path, tiny_networks: Networks
) -> None:
    model = load(save(tmp_path / "model.safetensors", tiny_networks, torch.float16))
    for network in (model.unet, model.vae, model.text_encoders[0]):
        assert not network.training
        for tensor in [*network.parameters(), *network.buffers()]:
            assert tensor.device == CPU
            assert not tensor.requires_grad
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_loading_does_not_touch_torchs_generator(tiny_checkpoint: Path) -> None:
    before = torch.get_rng_state()
    load(tiny_checkpoint)
    assert torch.equal(torch.get_rng_state(), before)


def test_changing_a_loaded_model_does_not_change_the_file(
    tiny_model: SD1, tiny_tensors: dict[str, Tensor]
) -> None:
    with torch.no_grad():
        tiny_model.unet.conv_out.weight.zero_()
    key = f"{UNET}out.2.weight"
    for source in (tiny_model.source, load(tiny_model.path).source):
        assert torch.equal(source.tensor(key), tiny_tensors[key])


def test_the_schedule_is_stable_diffusions(tiny_model: SD1) -> None:
    alphas_cumprod = tiny_model.noise.alphas_cumprod
    assert alphas_cumprod[[0, -1]].tolist() == pytest.approx([0.99915, 0.00466], rel=1e-3)
    assert not tiny_model.noise.is_v_prediction


def test_the_files_metadata_changes_scale_prediction_and_resolution(
    tmp_path: Path, tiny_networks: Networks
) -> None:
    constants = {"latent_scale": 0.5, "is_v_prediction": True, "resolution": 32}
    model = load(save(tmp_path / "model.safetensors", tiny_networks, **constants))
    assert_computes_the_same(model, tiny_networks, scale=0.5)
    assert model.noise.is_v_prediction
    assert model.native_resolution == 32


def test_long_captions_are_cut_at_the_text_encoders_length(tiny_model: SD1) -> None:
    assert tiny_model.tokenizer.cut_text("dog " * 75) == ""
    assert tiny_model.tokenizer.cut_text("dog " * 75 + "and a cat") == "and a cat"
    kept = tiny_model.encode_captions(["dog " * 75])
    cut = tiny_model.encode_captions(["dog " * 75 + "and a cat"])
    assert torch.equal(kept.hidden, cut.hidden)
