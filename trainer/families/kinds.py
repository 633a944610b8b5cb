"""Guesses what kind of file an unsuitable one is, from its tensors' names and shapes."""

from __future__ import annotations

from collections.abc import Mapping

from .layouts import ADDED, UNET, VAE, has_linear_projections

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
    "a U-Net alone, in the layout of diffusers": ("down_blocks.0.resnets.0.time_emb_proj.",),
}
"""Parts of names by kind of file, checked in this order: a Flux checkpoint also contains text
encoders."""

_PARTS_OF_SINGLE_NETWORKS: dict[str, tuple[str, ...]] = {
    "a Stable Diffusion 2 model without a U-Net": ("cond_stage_model.model.",),
    "a Stable Diffusion XL model without a U-Net": ("conditioner.embedders.",),
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
    if not any(key.startswith((VAE, "cond_stage_model.", "conditioner.")) for key in shapes):
        return "a U-Net alone"
    generation, num_channels = _generation(shapes), conv_in[1] if len(conv_in) == 4 else 0
    if generation == "XL" and _ONLY_IN_REFINERS in shapes:
        return "a Stable Diffusion XL refiner, which only improves images"
    if generation == "2" and ADDED in shapes:
        return "a Stable Diffusion 2 unCLIP model, which draws from images"
    if num_channels in _PURPOSES:
        return (
            f"a Stable Diffusion {generation} {_PURPOSES[num_channels]} model (its U-Net has "
            f"{num_channels} input channels)"
        )
    return UNKNOWN


_ONLY_IN_REFINERS = "conditioner.embedders.0.model.ln_final.weight"
_PURPOSES = {5: "depth", 7: "upscaling", 8: "editing", 9: "inpainting"}
"""What a U-Net is for, by its number of input channels."""


def _generation(shapes: Mapping[str, tuple[int, ...]]) -> str:
    if not has_linear_projections(shapes):
        return "1"
    is_xl = ADDED in shapes and any(key.startswith("conditioner.") for key in shapes)
    return "XL" if is_xl else "2"
