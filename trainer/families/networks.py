"""The networks that diffusers and transformers supply, planned from a checkpoint's layout, checked
against its tensors, and only then filled with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import key_maps
from .constants import CONSTANTS_KEY, Constants
from .files import CheckpointFile
from .layouts import TextLayout, UNetLayout, VaeLayout

CLIP_VOCABULARY = 49408


class Network:
    """One of the three, first without memory (on torch's meta device), then with the file's."""

    def __init__(
        self, build: Callable[[], nn.Module], name_all: Callable[[list[str]], dict[str, str]]
    ) -> None:
        with torch.device("meta"):  # takes no memory, and draws nothing from torch's generator
            self.module: Any = build()
        self.file_names = name_all(list(self.module.state_dict()))

    def require_tensors(self, source: CheckpointFile) -> None:
        """ValueError if the file lacks one, or has it in another shape."""
        for name, tensor in self.module.state_dict().items():
            key, shape = self.file_names[name], tuple(tensor.shape)
            source.require(key)
            if not key_maps.same_but_for_1x1(source.shapes[key], shape):
                raise ValueError(
                    f"The weight '{key}' of '{source.path.name}' has the shape "
                    f"{list(source.shapes[key])}, and its other weights call for {list(shape)}. "
                    "The file is damaged: download it again, or choose another."
                )

    def read_tensors(self, source: CheckpointFile, device: torch.device) -> None:
        """ValueError for a weight that is not a number."""
        tensors = {}
        for name, tensor in self.module.state_dict().items():
            key = self.file_names[name]
            # A copy in any case: the file's memory is the user's file.
            copy = source.tensor(key).to(device, torch.float32, copy=True)
            _refuse_not_finite(source, key, copy)
            tensors[name] = copy.view(tensor.shape)
        self.module.load_state_dict(tensors, assign=True)
        for module in self.module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                # The one buffer that no file fills: transformers counts the positions in it.
                assert name == "position_ids", name
                module.position_ids = torch.arange(buffer.shape[-1], device=device)[None]
        self.module.requires_grad_(False).eval()


def _refuse_not_finite(source: CheckpointFile, key: str, weight: Tensor) -> None:
    # Lowest and highest are not finite if any is not, and take no memory to find.
    if torch.stack(weight.aminmax()).isfinite().all():
        return
    num_bad = weight.numel() - int(weight.isfinite().sum())
    raise ValueError(
        f"The weight '{key}' of '{source.path.name}' holds {num_bad} numbers of {weight.numel()} "
        "that are infinite or not a number (NaN) and would spoil every result. Download the file "
        "again, or choose another."
    )


def plan_unet(source: CheckpointFile, constants: Constants) -> Network:
    # Imported here: ComfyUI's start-up should not pay for it.
    from diffusers import UNet2DConditionModel

    layout = UNetLayout.read(source)
    heads, groups = constants.unet_heads, constants.unet_norm_groups
    for width in layout.widths:
        _require_divisor(source, "U-Net", width, "unet_norm_groups", groups)
        _require_divisor(source, "U-Net", width, "unet_heads", heads)
    middles = {None: None, 0: "UNetMidBlock2D"}
    depths = [depth or 1 for depth in layout.down_depths]
    if layout.down_depths[-1] == 0:  # the middle's depth is diffusers' last one
        depths[-1] = layout.middle_depth or 1
    down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in layout.down_depths]
    up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(layout.up_depths)]

    def build() -> nn.Module:
        return UNet2DConditionModel(
            in_channels=layout.in_channels,
            out_channels=layout.out_channels,
            block_out_channels=layout.widths,
            layers_per_block=layout.num_layers,
            down_block_types=tuple(down),
            mid_block_type=middles.get(layout.middle_depth, "UNetMidBlock2DCrossAttn"),
            up_block_types=tuple(up),
            transformer_layers_per_block=tuple(depths),
            reverse_transformer_layers_per_block=tuple(d or 1 for d in reversed(layout.up_depths)),
            cross_attention_dim=layout.context_width,
            attention_head_dim=heads,  # the number of heads: diffusers keeps this name for it
            norm_num_groups=groups,
        )

    return Network(build, key_maps.unet_file_names)


def plan_vae(source: CheckpointFile, constants: Constants) -> Network:
    # Imported here: ComfyUI's start-up should not pay for it.
    from diffusers import AutoencoderKL

    layout = VaeLayout.read(source)
    for width in layout.widths:
        _require_divisor(source, "VAE", width, "vae_norm_groups", constants.vae_norm_groups)

    def build() -> nn.Module:
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(layout.widths),
            up_block_types=("UpDecoderBlock2D",) * len(layout.widths),
            block_out_channels=layout.widths,
            layers_per_block=layout.num_layers,
            latent_channels=layout.latent_channels,
            norm_num_groups=constants.vae_norm_groups,
            mid_block_add_attention=layout.has_attention,
            scaling_factor=constants.latent_scale,
        )

    return Network(build, key_maps.vae_file_names)


def plan_text_encoder(source: CheckpointFile, constants: Constants, prefix: str) -> Network:
    """CLIP's text encoder; `prefix` is what its names in the file begin with."""
    from transformers import CLIPTextConfig, CLIPTextModel

    layout = TextLayout.read(source, prefix)
    _require_divisor(source, "text encoder", layout.width, "text_heads", constants.text_heads)
    if layout.vocabulary < CLIP_VOCABULARY:
        raise ValueError(
            f"The text encoder of '{source.path.name}' knows {layout.vocabulary} tokens, and "
            f"CLIP's vocabulary has {CLIP_VOCABULARY}. Choose one with CLIP's text encoder."
        )
    config = CLIPTextConfig(
        vocab_size=layout.vocabulary,
        hidden_size=layout.width,
        intermediate_size=layout.inner_width,
        num_hidden_layers=layout.num_layers,
        num_attention_heads=constants.text_heads,
        max_position_embeddings=layout.positions,
        hidden_act="quick_gelu",
    )
    return Network(
        lambda: CLIPTextModel(config),
        lambda names: key_maps.text_encoder_file_names(names, prefix),
    )


def _require_divisor(
    source: CheckpointFile, network: str, width: int, constant: str, divisor: int
) -> None:
    if width % divisor:
        raise ValueError(
            f"The {network} of '{source.path.name}' has {width} channels, which {constant} = "
            f"{divisor} does not divide. Choose another checkpoint, or set {constant} in the "
            f"file's metadata under {CONSTANTS_KEY}."
        )
