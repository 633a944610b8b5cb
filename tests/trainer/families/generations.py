"""Small Stable Diffusion 2 and XL checkpoints with random weights. The networks are diffusers' and
transformers' own classes, complete, as those of published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.random_networks import TINY
from trainer.families.sd2 import SD2
from trainer.families.sdxl import SDXL
from trainer.families.stable_diffusion import StableDiffusion

WIDTH_L, WIDTH_G, WIDTH_H = 24, 32, 24
FAMILY: dict[str, type[StableDiffusion]] = {"XL": SDXL, "2": SD2}


def build(generation: str) -> dict[str, Any]:
    """The networks of a generation by part, with random weights, the same at every call."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        networks = {
            "unet": _unet(generation),
            "vae": AutoencoderKL(**TINY["vae"]),
            **({"text_encoder": _clip(WIDTH_H, "gelu")} if generation == "2" else _xl_encoders()),
        }
        for network in networks.values():
            _randomise(network)
            network.eval()
    return networks


def tensors_of(generation: str, networks: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """The tensors of the file, as the published one has them."""
    networks = networks or build(generation)
    tensors = FAMILY[generation].checkpoint_tensors(*networks.values())
    if generation == "XL":
        tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        positions = "conditioner.embedders.0.transformer.text_model.embeddings.position_ids"
        tensors[positions] = torch.arange(77)[None]
    else:
        tensors["cond_stage_model.model.text_projection"] = torch.randn(WIDTH_H, WIDTH_H)
        tensors["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def write(
    path: Path,
    generation: str,
    *,
    dtype: torch.dtype = torch.float32,
    more: dict[str, Tensor] | None = None,
    tensors: dict[str, Tensor] | None = None,
    **constants: Any,
) -> Path:
    """Write a checkpoint with a native size of 16 x 16 pixels, and return its path."""
    constants = {"unet_heads": 4, "text_heads": 2, "resolution": 16, **constants}
    tensors = tensors_of(generation) if tensors is None else tensors
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    metadata = {"format": "pt", "dreambooth.constants": json.dumps(constants)}
    save_file({**stored, **(more or {})}, path, metadata=metadata)
    return path


def _unet(generation: str) -> nn.Module:
    from diffusers import UNet2DConditionModel

    if generation == "2":
        return UNet2DConditionModel(
            **{**TINY["unet"], "cross_attention_dim": WIDTH_H},
            attention_head_dim=4,
            use_linear_projection=True,
        )
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2),
        cross_attention_dim=WIDTH_L + WIDTH_G,
        attention_head_dim=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=WIDTH_G + 6 * 256,
    )


def _xl_encoders() -> dict[str, nn.Module]:
    return {
        "text_encoder": _clip(WIDTH_L, "quick_gelu"),
        "text_encoder_2": _clip(WIDTH_G, "gelu", projection_dim=WIDTH_G),
    }


def _clip(width: int, activation: str, **projection: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3,
        num_attention_heads=2, hidden_act=activation, eos_token_id=49407, **projection,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


def _randomise(network: nn.Module) -> None:
    """Biases and norms start as zeros and ones, which would hide that they are swapped."""
    for name, parameter in network.named_parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.1)
