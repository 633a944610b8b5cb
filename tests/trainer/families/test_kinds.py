"""Files of other kinds, with tensor names from published files of each kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import TINY_METADATA
from trainer import families
from trainer.families.files import CheckpointFile
from trainer.families.sd1 import SD1

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
Shapes = Mapping[str, tuple[int, ...]]

SD1_UNET: Shapes = {
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320, 1, 1),
    f"{UNET}out.2.weight": (4, 320, 3, 3),
}
SD2_UNET: Shapes = {**SD1_UNET, f"{UNET}input_blocks.1.1.proj_in.weight": (320, 320)}
VAE_PART: Shapes = {f"{VAE}decoder.mid.block_1.conv1.weight": (512, 512, 3, 3)}
CLIP_PART: Shapes = {
    f"{CLIP}transformer.text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)
}
OPEN_CLIP = "transformer.resblocks.0.attn.in_proj_weight"
XL: Shapes = {
    **SD2_UNET,
    **VAE_PART,
    f"{UNET}label_emb.0.0.weight": (1280, 2816),
    f"conditioner.embedders.1.model.{OPEN_CLIP}": (3840, 1280),
}

OTHER_FILES: list[tuple[str, Shapes]] = [
    ("a LoRA", {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": (4, 320, 1, 1)}),
    ("a LoRA", {"lora_te_text_model_encoder_layers_0_mlp_fc1.alpha": ()}),
    ("a LoRA", {"unet.down_blocks.0.attentions.0.proj_in.lora_A.weight": (4, 320)}),
    ("a LoRA", {"transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight": (16, 3072)}),
    ("a ControlNet", {"control_model.input_blocks.0.0.weight": (320, 4, 3, 3)}),
    ("a ControlNet", {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}),
    (
        "a Flux model",
        {f"{UNET}double_blocks.0.img_attn.norm.key_norm.scale": (128,), **VAE_PART, **CLIP_PART},
    ),
    ("a Flux model", {"double_blocks.0.img_attn.norm.query_norm.scale": (128,)}),
    (
        "a Flux model",
        {
            "single_transformer_blocks.0.attn.to_k.weight": (3072, 3072),
            "transformer_blocks.0.attn.add_k_proj.weight": (3072, 3072),
        },
    ),
    (
        "a Stable Diffusion 3 model",
        {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536), **VAE_PART},
    ),
    ("a Stable Diffusion 3 model", {"transformer_blocks.0.attn.add_k_proj.weight": (1536, 1536)}),
    (
        "a Stable Diffusion 2 model without a U-Net",
        {**VAE_PART, f"{CLIP}model.{OPEN_CLIP}": (3072, 1024)},
    ),
    (
        "a Stable Diffusion 2 inpainting model (its U-Net has 9 input channels)",
        {**SD2_UNET, **VAE_PART, f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)},
    ),
    (
        "a Stable Diffusion 2 depth model (its U-Net has 5 input channels)",
        {**SD2_UNET, **VAE_PART, f"{UNET}input_blocks.0.0.weight": (320, 5, 3, 3)},
    ),
    (
        "a Stable Diffusion 2 unCLIP model, which draws from images",
        {**SD2_UNET, **VAE_PART, f"{UNET}label_emb.0.0.weight": (1280, 2048)},
    ),
    (
        "a Stable Diffusion XL inpainting model (its U-Net has 9 input channels)",
        {**XL, f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)},
    ),
    (
        "a Stable Diffusion XL refiner, which only improves images",
        {
            **SD2_UNET,
            **VAE_PART,
            f"{UNET}label_emb.0.0.weight": (1536, 2560),
            "conditioner.embedders.0.model.ln_final.weight": (1280,),
        },
    ),
    ("a U-Net alone", {**SD2_UNET, f"{UNET}label_emb.0.0.weight": (1280, 2816)}),
    (
        "a Stable Diffusion XL model without a U-Net",
        {f"conditioner.embedders.1.model.{OPEN_CLIP}": (3840, 1280)},
    ),
    (
        "a Stable Diffusion 1 inpainting model (its U-Net has 9 input channels)",
        {**SD1_UNET, **VAE_PART, **CLIP_PART, f"{UNET}input_blocks.0.0.weight": (320, 9, 3, 3)},
    ),
    (
        "a Stable Diffusion 1 editing model (its U-Net has 8 input channels)",
        {**SD1_UNET, **VAE_PART, **CLIP_PART, f"{UNET}input_blocks.0.0.weight": (320, 8, 3, 3)},
    ),
    ("a U-Net alone", SD1_UNET),
    (
        "a U-Net alone, in the layout of diffusers",
        {
            "down_blocks.0.resnets.0.time_emb_proj.weight": (320, 1280),
            "conv_in.weight": (320, 4, 3, 3),
        },
    ),
    ("a VAE alone", VAE_PART),
    ("a VAE alone", {"decoder.mid.block_1.conv1.weight": (512, 512, 3, 3)}),
    ("a VAE alone", {"decoder.mid_block.resnets.0.conv1.weight": (512, 512, 3, 3)}),
    ("a text encoder alone", CLIP_PART),
    ("a text encoder alone", {"text_model.encoder.layers.0.self_attn.q_proj.weight": (768, 768)}),
    ("a text encoder alone", {"encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}),
    ("a textual inversion embedding", {"emb_params": (3, 768)}),
    ("a textual inversion embedding", {"<cat-toy>": (768,)}),
    ("a textual inversion embedding", {"clip_l": (2, 768), "clip_g": (2, 1280)}),
    ("a file of unknown contents", {"model.embed_tokens.weight": (3, 2, 1)}),
    ("a file of unknown contents", {f"layers.{n}.weight": (8, 8) for n in range(12)}),
]


def write(path: Path, shapes: Shapes) -> Path:
    """Write a .ckpt of tensors with these shapes that stores only one element of each."""
    tensors = {name: torch.zeros(()).half().expand(shape) for name, shape in shapes.items()}
    torch.save({"state_dict": tensors}, path)
    return path


@pytest.mark.parametrize(("kind", "shapes"), OTHER_FILES)
def test_other_kinds_of_files_are_named_and_refused(
    tmp_path: Path, kind: str, shapes: Shapes
) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(write(tmp_path / "model.ckpt", shapes), torch.device("cpu"))
    assert str(error.value) == (
        f"'model.ckpt' is {kind}, not a Stable Diffusion 1, 2 or XL checkpoint. "
        "Choose one that ComfyUI's Load Checkpoint reads."
    )


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        (torch.float8_e4m3fn, "model.diffusion_model.scaled_fp8"),
        (torch.float8_e4m3fn, "model.diffusion_model.out.2.scale_weight"),
        (torch.float8_e4m3fn, "model.diffusion_model.out.2.scale_input"),
        (torch.float8_e4m3fn, "model.diffusion_model.out.2.comfy_quant"),
        (torch.int8, "model.diffusion_model.out.2.weight_scale"),
        (torch.uint8, "model.diffusion_model.out.2.weight.quant_state.bitsandbytes__nf4"),
    ],
)
def test_a_quantized_file_is_named_and_refused(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], dtype: torch.dtype, scale: str
) -> None:
    weight = "model.diffusion_model.out.2.weight"
    coarse = {weight: tiny_tensors[weight].to(dtype), scale: torch.ones(())}
    save_file({**tiny_tensors, **coarse}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(tmp_path / "model.safetensors", torch.device("cpu"))
    assert str(error.value) == (
        "'model.safetensors' is quantized (scaled fp8 or similar): its weights are stored as "
        f"coarse numbers with separate scales, such as '{scale}', to draw with less memory. They "
        "cannot be trained. Choose the fp16, bf16 or fp32 version of this checkpoint."
    )
    fp16 = {name: tensor.half() for name, tensor in tiny_tensors.items()}
    save_file(fp16, tmp_path / "model.safetensors", TINY_METADATA)
    families.load(tmp_path / "model.safetensors", torch.device("cpu"))


def test_an_old_style_embedding_is_recognised(tmp_path: Path) -> None:
    embedding = {"string_to_param": {"*": torch.zeros(2, 768)}, "name": "cat-toy", "step": 500}
    torch.save(embedding, tmp_path / "cat-toy.pt")
    with pytest.raises(ValueError, match="^'cat-toy.pt' is a textual inversion embedding, not"):
        families.load(tmp_path / "cat-toy.pt", torch.device("cpu"))


def test_a_stable_diffusion_1_file_is_recognised_by_its_names(tiny_checkpoint: Path) -> None:
    assert families.family_of(CheckpointFile(tiny_checkpoint)) is SD1


@pytest.mark.parametrize(
    ("part", "prefix"), [("VAE", VAE), ("text encoder", CLIP)], ids=["VAE", "text encoder"]
)
def test_a_missing_part_is_named(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], part: str, prefix: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({k: v for k, v in tiny_tensors.items() if not k.startswith(prefix)}, path)
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(path, torch.device("cpu"))
    advice = {
        "VAE": ". Name the file of one for Stable Diffusion 1 with --vae; in ComfyUI, load both "
        "with ComfyUI's Load Checkpoint and Load VAE, and connect them to Model from Graph. Or "
        "choose a complete checkpoint.",
        "text encoder": ", but U-Net, VAE and text encoder are all needed. Choose a complete "
        "Stable Diffusion 1 checkpoint.",
    }
    assert str(error.value) == f"'model.safetensors' has no {part}{advice[part]}"
    save_file(tiny_tensors, path, TINY_METADATA)
    families.load(path, torch.device("cpu"))
