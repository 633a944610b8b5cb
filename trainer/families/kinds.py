"""Guesses what kind of file an unsuitable one is, from its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from .layouts import UNET, VAE

AN_EMBEDDING = "a textual inversion embedding"
UNKNOWN = "a file of unknown contents"
_PARTS_OF_NAMES: dict[str, tuple[str, ...]] = {
    "a LoRA": (
        "lora_unet_",
        "lora_te",
        "lora_transformer_",
        ".lora_A.",
        ".lora_B.",
        ".lora_up.",
        ".lora_down.",
        "_lora.up.",
        "_lora.down.",
        ".hada_w1_a",
        ".lokr_w1",
    ),
    "a ControlNet": ("control_model.", "controlnet_cond_embedding.", "input_hint_block."),
    "a Flux model": ("double_blocks.0.img_attn.norm.", "single_transformer_blocks.0."),
    "a Stable Diffusion 3 model": ("joint_blocks.0.", "transformer_blocks.0.attn.add_k_proj."),
    "a Stable Diffusion 2 model": ("cond_stage_model.model.",),
    "a Stable Diffusion XL model": ("conditioner.embedders.", f"{UNET}label_emb."),
    "a U-Net alone, in the layout of diffusers": ("down_blocks.0.resnets.0.time_emb_proj.",),
}
"""Parts of names by kind of file, checked in this order: a Flux checkpoint also contains text
encoders, and an XL checkpoint also contains a VAE."""

_PARTS_OF_SINGLE_NETWORKS: dict[str, tuple[str, ...]] = {
    "a VAE alone": ("decoder.mid.block_1.", "decoder.mid_block.", "taesd_decoder."),
    "a text encoder alone": (
        "encoder.layers.0.self_attn.",
        "transformer.resblocks.0.",
        "encoder.block.0.layer.0.SelfAttention.",
    ),
}
"""The same, only for files without a U-Net."""


_SCALES = (
    "scaled_fp8",
    ".scale_weight",
    ".scale_input",
    ".weight_scale",
    ".weight_scale_2",
    ".input_scale",
    ".comfy_quant",
    ".absmax",
    ".quant_map",
)
"""The ends of names that only quantized files have: ComfyUI's scaled fp8, and bitsandbytes'."""


def scale_of_quantized(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The name of a tensor by which quantized weights must be multiplied. None: the file is not
    quantized."""
    return next((key for key in shapes if key.endswith(_SCALES) or ".quant_state." in key), None)


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The kind of a file, such as "a LoRA", or `UNKNOWN`."""
    if kind := _find(shapes, _PARTS_OF_NAMES):
        return kind
    if conv_in := shapes.get(f"{UNET}input_blocks.0.0.weight"):
        return _describe_unet(shapes, conv_in)
    if kind := _find(shapes, _PARTS_OF_SINGLE_NETWORKS):
        return kind
    if len(shapes) <= 4 and all(1 <= len(shape) <= 2 for shape in shapes.values()):
        return AN_EMBEDDING
    return UNKNOWN


def _find(shapes: Mapping[str, tuple[int, ...]], kinds: dict[str, tuple[str, ...]]) -> str | None:
    for kind, parts in kinds.items():
        if any(part in key for key in shapes for part in parts):
            return kind
    return None


def _describe_unet(shapes: Mapping[str, tuple[int, ...]], conv_in: tuple[int, ...]) -> str:
    if has_linear_projections(shapes):
        return "a Stable Diffusion 2 model"
    if conv_in[1:2] == (9,):
        return "a Stable Diffusion 1 inpainting model (its U-Net has 9 input channels)"
    if conv_in[1:2] == (8,):
        return "a Stable Diffusion 1 editing model (its U-Net has 8 input channels)"
    if not any(key.startswith((VAE, "cond_stage_model.")) for key in shapes):
        return "a U-Net alone"
    return UNKNOWN


def has_linear_projections(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether attention blocks begin with linear layers, as in Stable Diffusion 2 and later, rather
    than 1x1 convolutions."""
    return any(
        len(shape) == 2
        for key, shape in shapes.items()
        if key.startswith(UNET) and key.endswith(".proj_in.weight")
    )
