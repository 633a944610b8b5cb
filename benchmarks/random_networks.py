"""Stable Diffusion 1 networks of several sizes with random weights, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

from trainer.families.shapes import SDXL

Options = dict[str, Any]
"""Arguments of a network's own class in diffusers or transformers, where they differ from the
defaults."""
Shape = dict[str, Options]
"""The options of `unet`, `vae` and `text_encoder`."""
Networks = tuple[Any, Any, Any]
"""U-Net, VAE and text encoder."""


def _vae(*widths: int, layers_per_block: int = 1) -> Options:
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
        "layers_per_block": layers_per_block,
    }


SD15: Shape = {
    "unet": {"cross_attention_dim": 768},
    "vae": _vae(128, 256, 512, 512, layers_per_block=2),
    "text_encoder": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
}
"""Stable Diffusion 1.5. Its U-Net is diffusers' default but for the text embeddings' width."""
SD15_HALF_WIDTH: Shape = {
    "unet": {"block_out_channels": (160, 320, 640, 640), "cross_attention_dim": 384},
    "vae": _vae(64, 128, 256, 256, layers_per_block=2),
    "text_encoder": {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12},
}
"""Stable Diffusion 1.5 with layers of half their width."""
FOUR_LEVELS: Shape = {
    "unet": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 24},
    "vae": _vae(32, 32, 64, 64, layers_per_block=2),
    "text_encoder": {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2},
}
"""Stable Diffusion 1.5 with narrow layers: the same levels, layers and places of attention."""
TINY: Shape = {
    "unet": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 24,
    },
    "vae": _vae(32, 32),
    "text_encoder": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2},
}
"""Narrow layers and two levels, for tests. The VAE halves width and height once."""
SD15_TWO_LEVELS: Shape = {
    "unet": {**TINY["unet"], "block_out_channels": (320, 640), "cross_attention_dim": 768},
    "vae": SD15["vae"],
    "text_encoder": {**SD15["text_encoder"], "num_hidden_layers": 2},
}
"""Stable Diffusion 1.5's widths with two U-Net levels and two text encoder layers."""
SD15_ONE_LEVEL: Shape = {
    "unet": {
        **SD15_TWO_LEVELS["unet"],
        "block_out_channels": (320,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
    },
    "vae": SD15["vae"],
    "text_encoder": SD15["text_encoder"],
}
"""Stable Diffusion 1.5's widths with one U-Net level. ComfyUI's checkpoint loader accepts it."""


XL_UNET: Options = dict(SDXL.unet.options)
"""The U-Net of Stable Diffusion XL."""
TINY_XL_UNET: Options = {
    **XL_UNET,
    "block_out_channels": (32, 64, 64),
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (2, 4, 4),
    "cross_attention_dim": 24,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 64,
}


def construct(*, unet: Options, vae: Options, text_encoder: Options) -> Networks:
    """Return new networks of a shape, with the initial weights of their own classes."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    clip = {"vocab_size": 49408, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
    return (
        construct_unet(unet),
        AutoencoderKL(latent_channels=4, **vae),
        CLIPTextModel(CLIPTextConfig(**{**clip, **text_encoder})),
    )


def construct_unet(options: Options) -> Any:
    """Return a new U-Net."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**{"attention_head_dim": 8, **options})
