"""U-Net, VAE and text encoder from diffusers and transformers: built from a checkpoint's layout,
checked against its tensors, then filled with them.

The `plan_*` functions raise ValueError if the layout cannot be read or the constants do not fit it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import precision, weights
from . import key_maps
from .constants import CONSTANTS_KEY, Constants
from .files import CheckpointFile
from .layouts import TextLayout, UNetLayout, VaeLayout

CLIP_VOCABULARY = 49408


@dataclass(frozen=True, slots=True)
class NumberFormats:
    """The number formats in which a model's weights are kept in memory. The VAE's are fp32."""

    precision: str = "fp32"
    """That of the computation, in which frozen weights are kept, except those that it uses in fp32.
    """
    weights: str = "fp32"
    """That of weights to train; see `trainer/weights.py`."""
    trained: frozenset[str] = frozenset()
    """The names of the parts to train, such as "unet"."""


FP32 = NumberFormats()


class Network:
    """A U-Net, VAE or text encoder, built on torch's meta device and filled with the file's tensors
    later."""

    def __init__(
        self, build: Callable[[], nn.Module], name_all: Callable[[list[str]], dict[str, str]]
    ) -> None:
        with torch.device("meta"):  # uses no memory and no random numbers of torch's generator
            self.module: Any = build()
        self.file_names = name_all(list(self.module.state_dict()))

    def require_tensors(self, source: CheckpointFile) -> None:
        """Raises ValueError if a tensor is missing from the file or has another shape there."""
        for name, tensor in self.module.state_dict().items():
            key, shape = self.file_names[name], tuple(tensor.shape)
            source.require(key)
            if not key_maps.shapes_match(source.shapes[key], shape):
                raise ValueError(
                    f"The weight '{key}' of '{source.name}' has the shape "
                    f"{list(source.shapes[key])}, but its other weights call for {list(shape)}. "
                    "The file is damaged: download it again, or choose another."
                )

    def read_tensors(
        self, source: CheckpointFile, part: str = "", formats: NumberFormats = FP32
    ) -> None:
        """Fill the module with copies of the file's tensors, frozen, in eval mode and in main
        memory. They are in fp32, or in the formats for one of the model's parts. No more than one
        weight at a time is converted. Raises ValueError if a weight is NaN or infinite."""
        is_trained = part in formats.trained
        used = "fp32" if is_trained or not part else formats.precision
        dtypes = precision.frozen_dtypes(self.module, used)
        tensors = {}
        for name, tensor in self.module.state_dict().items():
            key = self.file_names[name]
            # Always a copy: writing to a memory-mapped tensor could change the user's file.
            copy = source.tensor(key).to(torch.float32, copy=True)
            _refuse_not_finite(source, key, copy)
            copy = copy.view(tensor.shape).to(dtypes[name])
            tensors[name] = nn.Parameter(copy, requires_grad=False)
            if is_trained:
                weights.store(tensors[name], formats.weights)
        self.module.load_state_dict(tensors, assign=True)
        for module in self.module.modules():
            for name, buffer in module.named_buffers(recurse=False):
                # The only buffer, which transformers fills with position numbers.
                assert name == "position_ids", name
                module.position_ids = torch.arange(buffer.shape[-1])[None]
        self.module.requires_grad_(False).eval()


def _refuse_not_finite(source: CheckpointFile, key: str, weight: Tensor) -> None:
    # If any value is not finite, the minimum or maximum is not. Finding them needs no extra memory.
    if torch.stack(weight.aminmax()).isfinite().all():
        return
    num_bad = weight.numel() - int(weight.isfinite().sum())
    raise ValueError(
        f"The weight '{key}' of '{source.name}' holds {num_bad} numbers of {weight.numel()} "
        "that are infinite or not a number (NaN) and would spoil every result. Download the file "
        "again, or choose another."
    )


def plan_unet(source: CheckpointFile, constants: Constants) -> Network:
    # Imported here: ComfyUI's start-up should not pay for it.
    from diffusers import UNet2DConditionModel

    layout = UNetLayout.read(source)
    for width in layout.widths:
        _require_divisor(source, "U-Net", width, "unet_norm_groups", constants.unet_norm_groups)
        _require_divisor(source, "U-Net", width, "unet_heads", constants.unet_heads)
    up_depths = layout.up_depths[::-1]  # diffusers begins with the last level

    def build() -> nn.Module:
        return UNet2DConditionModel(
            in_channels=layout.in_channels,
            out_channels=layout.out_channels,
            block_out_channels=layout.widths,
            layers_per_block=layout.num_layers,
            down_block_types=tuple(map(_down_block, layout.down_depths)),
            mid_block_type=_mid_block(layout.middle_depth),
            up_block_types=tuple(map(_up_block, up_depths)),
            transformer_layers_per_block=_depths_down(layout),
            reverse_transformer_layers_per_block=tuple(depth or 1 for depth in up_depths),
            cross_attention_dim=layout.context_width,
            attention_head_dim=constants.unet_heads,  # diffusers' name for the number of heads
            norm_num_groups=constants.unet_norm_groups,
        )

    return Network(build, key_maps.unet_file_names)


def _down_block(depth: int) -> str:
    return "CrossAttnDownBlock2D" if depth else "DownBlock2D"


def _up_block(depth: int) -> str:
    return "CrossAttnUpBlock2D" if depth else "UpBlock2D"


def _mid_block(depth: int | None) -> str | None:
    if depth is None:
        return None
    return "UNetMidBlock2DCrossAttn" if depth else "UNetMidBlock2D"


def _depths_down(layout: UNetLayout) -> tuple[int, ...]:
    """The transformer layers of each level. diffusers uses the last number for the middle too, so
    for a last level without attention it is the middle's depth. Levels without attention need a
    positive number that is not used."""
    *others, last = layout.down_depths
    return tuple(depth or 1 for depth in (*others, last or layout.middle_depth))


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


def plan_text_encoder(
    source: CheckpointFile, constants: Constants, prefix: str, clip_skip: int = 1
) -> Network:
    """CLIP's text encoder, whose names in the file begin with `prefix`. It ends with the layer that
    `clip_skip` counts to from the last one, followed by the final layer norm."""
    from transformers import CLIPTextConfig, CLIPTextModel

    layout = TextLayout.read(source, prefix)
    _require_divisor(source, "text encoder", layout.width, "text_heads", constants.text_heads)
    if layout.vocabulary < CLIP_VOCABULARY:
        raise ValueError(
            f"The text encoder of '{source.name}' knows {layout.vocabulary} tokens, but "
            f"CLIP's vocabulary has {CLIP_VOCABULARY}. Choose a checkpoint with CLIP's text "
            "encoder."
        )
    if not 1 <= clip_skip <= layout.num_layers:
        raise ValueError(
            f"clip_skip is {clip_skip}, but the text encoder of '{source.name}' has "
            f"{layout.num_layers} layers. Choose a clip_skip between 1 and {layout.num_layers}."
        )
    config = CLIPTextConfig(
        vocab_size=layout.vocabulary,
        hidden_size=layout.width,
        intermediate_size=layout.inner_width,
        num_hidden_layers=layout.num_layers - (clip_skip - 1),
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
            f"The {network} of '{source.name}' has {width} channels, which is not divisible "
            f"by {constant} = {divisor}. Choose another checkpoint, or set {constant} in the "
            f"file's metadata under {CONSTANTS_KEY}."
        )
