"""The embedded model's untrained networks, and their adjustments after training.

They are small versions of Stable Diffusion 1's networks. Group norms, heads, scaling factor and
vocabulary are the same, except that the VAE uses 8 groups: with 32 groups, each of its 32 channels
would be normalised separately, which loses the colours of the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..families.tokenizer import END, START, ClipTokenizer
from . import world
from .drawing import SHAPES, SIZE
from .lessons import named_looks

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

TEXT_WIDTH = 96


def build_vae() -> AutoencoderKL:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
    )


def build_unet() -> UNet2DConditionModel:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=SIZE // 4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )


def build_text_encoder() -> CLIPTextModel:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    )


@torch.no_grad()
def fold_latent_scale(vae: AutoencoderKL, center: Tensor, scale: Tensor) -> None:
    """Fold each latent channel's mean and standard deviation [4] into the 1x1 convolutions before
    and after the latents, so that Stable Diffusion's scaling factor gives them standard deviation
    1."""
    scale = scale * 0.18215
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= scale.view(-1, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - center) / scale
    quant.bias[4:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ center
    post.weight *= scale.view(1, -1, 1, 1)


@torch.no_grad()
def fill_unknown_words(embeddings: Tensor) -> None:
    """Give every token that appeared in no caption an embedding like those of the names, so that
    the model takes an unknown word before a noun for an individual that it does not know yet."""
    tokenizer = ClipTokenizer()
    words = " ".join([*SHAPES, *world.COLORS, *world.PATTERNS, *world.PREFIXES,
                      *world.BACKGROUNDS.values(), *named_looks()])  # fmt: skip
    known = {tokenizer.token_id(f"{word}</w>") for word in words.split()}
    known |= {tokenizer.token_id(START), tokenizer.token_id(END)}
    unknown = [row for row in range(len(embeddings)) if row not in known]
    names = embeddings[[tokenizer.token_id(f"{name}</w>") for name in named_looks()]]
    center = names.mean(dim=0)
    mixture = torch.randn(len(unknown), len(names), generator=torch.Generator().manual_seed(3))
    embeddings[unknown] = center + mixture @ (names - center) / len(names) ** 0.5
