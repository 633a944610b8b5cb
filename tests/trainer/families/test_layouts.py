from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer.families import key_maps
from trainer.families.files import CheckpointFile
from trainer.families.layouts import TextLayout, UNetLayout, VaeLayout
from trainer.families.sd1 import SD1, TEXT
from trainer.toy import recipe

UNET = "model.diffusion_model."


def shapes_only(path: Path, tensors: dict[str, Tensor]) -> CheckpointFile:
    """A file of tensors with these shapes that stores only one element of each."""
    empty = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in tensors.items()}
    torch.save(empty, path)
    return CheckpointFile(path)


def unet_on_meta(**options: Any) -> dict[str, Tensor]:
    """A U-Net's tensors in the file's layout, on the meta device."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        state = UNet2DConditionModel(cross_attention_dim=768, **options).state_dict()
    return key_maps.in_file_layout(state, key_maps.unet_places(state))


def stable_diffusion_15() -> dict[str, Tensor]:
    """All tensors in the file's layout, on the meta device."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).state_dict()
        clip = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072)).state_dict()
    return {
        **unet_on_meta(),
        **key_maps.in_file_layout(vae, key_maps.vae_places(vae)),
        **key_maps.in_file_layout(clip, key_maps.clip_places(clip, TEXT)),
    }


def test_stable_diffusion_15(tmp_path: Path) -> None:
    source = shapes_only(tmp_path / "model.ckpt", stable_diffusion_15())
    assert UNetLayout.read(source) == UNetLayout(
        in_channels=4,
        out_channels=4,
        widths=(320, 640, 1280, 1280),
        num_layers=(2, 2, 2, 2),
        down_depths=(1, 1, 1, 0),
        up_depths=(1, 1, 1, 0),
        middle_depth=1,
        context_width=768,
        has_linear_projections=False,
        added_width=0,
    )
    assert VaeLayout.read(source) == VaeLayout(
        latent_channels=4, widths=(128, 256, 512, 512), num_layers=2, has_attention=True
    )
    assert TextLayout.read(source, TEXT) == TextLayout(
        vocabulary=49408,
        positions=77,
        width=768,
        inner_width=3072,
        num_layers=12,
        projection_width=0,
    )


def test_the_toy_model(tmp_path: Path) -> None:
    with torch.device("meta"):
        toy = recipe.build_unet(), recipe.build_vae(), recipe.build_text_encoder()
    source = shapes_only(tmp_path / "model.ckpt", SD1.checkpoint_tensors(*toy))
    assert UNetLayout.read(source) == UNetLayout(
        in_channels=4,
        out_channels=4,
        widths=(64, 96, 128),
        num_layers=(1, 1, 1),
        down_depths=(0, 1, 1),
        up_depths=(0, 1, 1),
        middle_depth=1,
        context_width=96,
        has_linear_projections=False,
        added_width=0,
    )
    assert VaeLayout.read(source) == VaeLayout(
        latent_channels=4, widths=(32, 64, 64), num_layers=1, has_attention=True
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mid_block_type": "UNetMidBlock2D"}, {"middle_depth": 0}),
        ({"mid_block_type": None}, {"middle_depth": None}),
        ({"layers_per_block": (1, 2, 3, 1)}, {"num_layers": (1, 2, 3, 1)}),
        (
            {
                "transformer_layers_per_block": (1, 2, 3, 4),
                "reverse_transformer_layers_per_block": (1, 4, 5, 6),
            },
            {"down_depths": (1, 2, 3, 0), "up_depths": (6, 5, 4, 0), "middle_depth": 4},
        ),
        (
            {"up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
            {"up_depths": (0, 1, 0, 0)},
        ),
    ],
    ids=["middle without attention", "no middle", "layers", "depths", "attention going up"],
)
def test_other_unets(tmp_path: Path, options: dict[str, Any], expected: dict[str, Any]) -> None:
    layout = UNetLayout.read(shapes_only(tmp_path / "model.ckpt", unet_on_meta(**options)))
    assert {name: getattr(layout, name) for name in expected} == expected


def test_a_vae_without_attention(tmp_path: Path, tiny_tensors: dict[str, Tensor]) -> None:
    with_attention = shapes_only(tmp_path / "model.ckpt", tiny_tensors)
    assert VaeLayout.read(with_attention).has_attention
    tensors = {name: tensor for name, tensor in tiny_tensors.items() if ".attn_1." not in name}
    assert not VaeLayout.read(shapes_only(tmp_path / "other.ckpt", tensors)).has_attention


@pytest.mark.parametrize(
    "lost",
    [
        f"{UNET}input_blocks.0.0.weight",
        f"{UNET}out.2.weight",
        f"{UNET}input_blocks.1.0.out_layers.3.weight",
        "first_stage_model.post_quant_conv.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        f"{TEXT}embeddings.token_embedding.weight",
        f"{TEXT}embeddings.position_embedding.weight",
        f"{TEXT}encoder.layers.0.mlp.fc1.weight",
    ],
)
def test_a_weight_that_the_layout_needs_is_named(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], lost: str
) -> None:
    path = tmp_path / "model.safetensors"
    save_file({name: tensor for name, tensor in tiny_tensors.items() if name != lost}, path)
    source = CheckpointFile(path)
    with pytest.raises(ValueError, match="lacks the weight") as error:
        (UNetLayout.read(source), VaeLayout.read(source), TextLayout.read(source, TEXT))
    assert str(error.value) == (
        f"'model.safetensors' lacks the weight '{lost}', which its other weights call for. "
        "The file is incomplete: download it again, or choose another."
    )


@pytest.mark.parametrize(
    ("removed", "missing"),
    [
        ("input_blocks.", "input_blocks.1.0.out_layers.3.weight"),
        ("input_blocks.3.", "input_blocks.3.0.in_layers.0.weight"),
    ],
)
def test_a_level_without_blocks_is_reported_by_its_first_weight(
    tmp_path: Path, tiny_tensors: dict[str, Tensor], removed: str, missing: str
) -> None:
    path, kept = tmp_path / "model.safetensors", f"{UNET}input_blocks.0.0.weight"
    tensors = {
        name: tensor
        for name, tensor in tiny_tensors.items()
        if name == kept or not name.startswith(UNET + removed)
    }
    save_file(tensors, path)
    with pytest.raises(ValueError, match=f"lacks the weight '{UNET}{missing}'"):
        UNetLayout.read(CheckpointFile(path))
