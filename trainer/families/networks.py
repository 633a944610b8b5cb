"""U-Net, VAE and text encoder from diffusers and transformers: built from a checkpoint's layout,
checked against its tensors, then filled with them.

The `plan_*` functions raise ValueError if the layout cannot be read or the constants do not fit it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import eight_bit, precision, weights
from ..weights import FileTensor, Joined
from . import key_maps
from .constants import CONSTANTS_KEY, Constants
from .files import CheckpointFile
from .key_maps import Places
from .layouts import TextLayout, UNetLayout, VaeLayout
from .text_encoders import TextEncoderSpec

CLIP_VOCABULARY = 49408
END_ID = CLIP_VOCABULARY - 1
"""The token that ends a text. The pooled output is that of the first one."""
UNET_HEAD_WIDTH = TEXT_HEAD_WIDTH = 64
"""Channels of an attention head, where the number of heads is not fixed."""
SIZE_WIDTH = 256
"""Width of the embedding of each number of Stable Diffusion XL's size conditions."""


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
    frozen: str = "precision"
    """That of frozen weights of linear layers and convolutions: "precision", or "8 bit"."""


FP32 = NumberFormats()


class Network:
    """A U-Net, VAE or text encoder, built on torch's meta device and filled with the file's tensors
    later."""

    def __init__(
        self, build: Callable[[], nn.Module], place_all: Callable[[list[str]], Places]
    ) -> None:
        with torch.device("meta"):  # uses no memory and no random numbers of torch's generator
            self.module: Any = build()
        self.places = place_all(list(self.module.state_dict()))

    def require_tensors(self, source: CheckpointFile) -> None:
        """Raises ValueError if a tensor is missing from the file or has another shape there."""
        for name, tensor in self.module.state_dict().items():
            key = self.places[name].key
            source.require(key)
            shapes = self.places[name].file_shapes(tuple(tensor.shape))
            if source.shapes[key] not in shapes:
                raise ValueError(
                    f"The weight '{key}' of '{source.name}' has the shape "
                    f"{list(source.shapes[key])}, but its other weights call for "
                    f"{list(shapes[0])}. The file is damaged: download it again, or choose another."
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
        is_in_8_bits = part and not is_trained and formats.frozen == "8 bit"
        in_8_bits = eight_bit.layers(self.module) if is_in_8_bits else {}
        self.module.requires_grad_(False).eval()
        tensors = {}
        for name, tensor in self.module.state_dict().items():
            place = self.places[name]
            found = place.read(source.tensor(place.key), tuple(tensor.shape))
            # Always a copy: writing to a memory-mapped tensor could change the user's file.
            copy = found.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            source.require_finite(place.key, copy)
            if layer := in_8_bits.get(name):
                tensors[name] = eight_bit.hold(layer, copy, dtypes[name])
                continue
            copy = copy.to(dtypes[name])
            tensors[name] = nn.Parameter(copy, requires_grad=False)
            if is_trained:
                weights.store(tensors[name], formats.weights)
        self.module.load_state_dict(tensors, assign=True)
        for name, buffer in list(self.module.named_buffers()):
            if buffer.is_meta:
                assert name.endswith("position_ids"), name  # which transformers fills with numbers
                owner = self.module.get_submodule(name.rpartition(".")[0])
                owner.position_ids = torch.arange(buffer.shape[-1])[None]

    def file_tensors(self, source: CheckpointFile) -> dict[str, FileTensor]:
        """The module's parameters, as the tensors that the file has of them. Views, in the number
        format of memory: `trainer/weights.py` tells their values."""
        parameters = dict(self.module.named_parameters())
        tensors: dict[str, FileTensor] = {}
        stacked: dict[str, dict[int, Tensor]] = {}
        for name, parameter in parameters.items():
            place = self.places[name]
            if place.third is not None:
                stacked.setdefault(place.key, {})[place.third] = parameter
            elif place.is_transposed:
                tensors[place.key] = Joined((parameter,), is_transposed=True)
            else:
                tensors[place.key] = weights.view(parameter, source.shapes[place.key])
        for key, thirds in stacked.items():
            tensors[key] = Joined(tuple(thirds[n] for n in range(3)))
        return tensors

    def initial_values(self, source: CheckpointFile) -> list[Tensor]:
        """The values that the module's parameters have in the file, in the file's number formats.
        Mapped from the file, if it is a .safetensors file."""
        places = [(self.places[name], p) for name, p in self.module.named_parameters()]
        return [place.read(source.tensor(place.key), tuple(p.shape)) for place, p in places]


def plan_unet(source: CheckpointFile, constants: Constants) -> Network:
    # Imported here: ComfyUI's start-up should not pay for it.
    from diffusers import UNet2DConditionModel

    layout = UNetLayout.read(source)
    heads = tuple(constants.unet_heads or width // UNET_HEAD_WIDTH for width in layout.widths)
    for width, num_heads in zip(layout.widths, heads, strict=True):
        _require_divisor(source, "U-Net", width, "unet_norm_groups", constants.unet_norm_groups)
        _require_divisor(source, "U-Net", width, "unet_heads", num_heads)
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
            attention_head_dim=heads,  # diffusers' name for the number of heads
            norm_num_groups=constants.unet_norm_groups,
            use_linear_projection=layout.has_linear_projections,
            **_added_conditions(layout),
        )

    return Network(build, key_maps.unet_places)


def _added_conditions(layout: UNetLayout) -> dict[str, Any]:
    """The options of a U-Net that is also given pooled text and sizes, as Stable Diffusion XL's."""
    if not layout.added_width:
        return {}
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": SIZE_WIDTH,
        "projection_class_embeddings_input_dim": layout.added_width,
    }


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

    return Network(build, key_maps.vae_places)


def plan_text_encoder(
    source: CheckpointFile, constants: Constants, spec: TextEncoderSpec, clip_skip: int
) -> Network:
    """CLIP's text encoder. Layers that do not contribute to its output are left out."""
    layout = spec.read_layout(source)
    heads = constants.text_heads or layout.width // TEXT_HEAD_WIDTH
    _require_divisor(source, "text encoder", layout.width, "text_heads", heads)
    _require_vocabulary(source, layout)
    _require_layer(source, layout, clip_skip)
    num_left_out = 0 if spec.is_pooled else clip_skip - 1

    def build() -> nn.Module:
        return build_text_encoder(
            {
                "vocab_size": layout.vocabulary,
                "hidden_size": layout.width,
                "intermediate_size": layout.inner_width,
                "num_hidden_layers": layout.num_layers - num_left_out,
                "num_attention_heads": heads,
                "max_position_embeddings": layout.positions,
                "hidden_act": spec.activation,
                "eos_token_id": END_ID,
            },
            projection_width=layout.projection_width if spec.is_pooled else None,
            has_norm=spec.is_pooled or constants.text_norm,
        )

    return Network(build, lambda names: spec.places(names, source))


def build_text_encoder(
    options: Mapping[str, Any], projection_width: int | None, *, has_norm: bool
) -> nn.Module:
    """A new text encoder from the options of transformers' CLIPTextConfig, on torch's current
    default device. With a projection, it also returns the pooled output of a text."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    if projection_width:
        config = CLIPTextConfig(**options, projection_dim=projection_width)
        return CLIPTextModelWithProjection(config)
    module = CLIPTextModel(CLIPTextConfig(**options))
    if not has_norm:
        # In transformers 4, the layers are inside of `text_model`.
        getattr(module, "text_model", module).final_layer_norm = nn.Identity()
    return module


def _require_vocabulary(source: CheckpointFile, layout: TextLayout) -> None:
    if layout.vocabulary < CLIP_VOCABULARY:
        raise ValueError(
            f"The text encoder of '{source.name}' knows {layout.vocabulary} tokens, but "
            f"CLIP's vocabulary has {CLIP_VOCABULARY}. Choose a checkpoint with CLIP's text "
            "encoder."
        )


def _require_layer(source: CheckpointFile, layout: TextLayout, clip_skip: int) -> None:
    if not 1 <= clip_skip <= layout.num_layers:
        raise ValueError(
            f"clip_skip is {clip_skip}, but the text encoder of '{source.name}' has "
            f"{layout.num_layers} layers. Choose a clip_skip between 1 and {layout.num_layers}."
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
