"""What Stable Diffusion 1, 2 and XL share: one checkpoint file with a U-Net, a VAE and CLIP text
encoders. `layouts.py` reads the networks' architecture from the file, `constants.py` holds what the
file does not say, and a module for each generation says the rest.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from ..noise import DiscreteNoise
from ..settings.config import PredictionType
from ..weights import FileTensor
from . import key_maps
from .base import Conditioning, Framing, ModelFamily, text_parts
from .constants import Constants
from .files import CheckpointFile
from .layouts import UNET, VAE
from .lora_layers import LoraLayer, lora_layers
from .networks import FP32, Network, NumberFormats, plan_text_encoder, plan_unet, plan_vae
from .prediction import mark
from .text_encoders import TextEncoder, TextEncoderSpec
from .tiles import Tiles

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it


class StableDiffusion(ModelFamily):
    """A model of one of the generations, also with other widths and depths than the published
    ones."""

    text_encoder_specs: ClassVar[tuple[TextEncoderSpec, ...]]
    defaults: ClassVar[Constants]
    """What this generation's files do not say."""
    tells_prediction_by_tensors: ClassVar[bool] = False
    """Whether ComfyUI reads what a file's model predicts from its tensors `v_pred` and `ztsnr`."""
    has_checkpoint_names_in_loras: ClassVar[bool] = False
    """Whether LoRA files name the U-Net's layers as checkpoints do, rather than as diffusers does.
    """

    def __init__(
        self,
        source: CheckpointFile,
        constants: Constants,
        networks: dict[str, Network],
        device: torch.device,
        clip_skip: int,
        formats: NumberFormats,
    ) -> None:
        self.device = device
        self.source = source
        self.clip_skip = clip_skip
        self.constants = constants
        self.unet, self.vae = networks["unet"].module, networks["vae"].module
        self.noise = DiscreteNoise.scaled_linear(
            constants.beta_start,
            constants.beta_end,
            is_v_prediction=constants.is_v_prediction,
            has_zero_terminal_snr=constants.has_zero_terminal_snr,
        )
        self.native_resolution = constants.resolution
        self.latent_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._tiles = Tiles(self.vae, self.latent_factor)
        self.encoders = tuple(
            TextEncoder(spec, networks[part].module, clip_skip, has_norm=constants.text_norm)
            for part, spec in self._specs().items()
        )
        self.text_encoders = nn.ModuleList([encoder.module for encoder in self.encoders])
        self.learned_vectors = {}
        self._networks, self._formats = networks, formats

    @classmethod
    def load(
        cls,
        source: CheckpointFile,
        constants: Constants,
        device: torch.device,
        clip_skip: int,
        formats: NumberFormats = FP32,
    ) -> Self:
        vae = source.vae or source
        networks = cls.plan_networks(source, constants, clip_skip)
        for part, network in networks.items():
            network.require_tensors(vae if part == "vae" else source)
        cls._require_same_latents(source, networks)
        cls._refuse_unknown_unet_weights(source, networks["unet"])
        for part, network in networks.items():
            if part == "vae":
                network.read_tensors(vae)
            else:
                network.read_tensors(source, part, formats)
        return cls(source, constants, networks, device, clip_skip, formats)

    @classmethod
    def read_constants(
        cls, source: CheckpointFile, prediction_type: PredictionType = "auto"
    ) -> Constants:
        constants = Constants.read(source, prediction_type, cls.usual_constants(source))
        mark(
            source,
            is_v=constants.is_v_prediction,
            zero_snr=constants.has_zero_terminal_snr,
            adds=cls.tells_prediction_by_tensors,
        )
        return constants

    @classmethod
    def usual_constants(cls, source: CheckpointFile) -> Constants:
        """What is assumed where the file says nothing."""
        return cls.defaults

    @classmethod
    def plan_networks(
        cls, source: CheckpointFile, constants: Constants, clip_skip: int
    ) -> dict[str, Network]:
        cls._require_all_parts(source)
        return {
            "unet": plan_unet(source, constants),
            "vae": plan_vae(source.vae or source, constants),
            **{
                part: plan_text_encoder(source, constants, spec, clip_skip)
                for part, spec in cls._specs().items()
            },
        }

    def read_text_encoders(self) -> None:
        for part in self._specs():
            self._networks[part].read_tensors(self.source, part, self._formats)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = (side // self.latent_factor for side in pixels.shape[2:])
        latents = self._tiles.where_needed(
            lambda: self.vae.encode(pixels).latent_dist, "encode", height, width
        )
        return latents.mean * self.constants.latent_scale, latents.std * self.constants.latent_scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        def decode() -> Tensor:
            pixels: Tensor = self.vae.decode(latents / self.constants.latent_scale).sample
            return pixels

        return self._tiles.where_needed(decode, "decode", *latents.shape[2:])

    def encode_captions(self, captions: list[str]) -> Conditioning:
        encoded = [encoder.encode(captions, self.device) for encoder in self.encoders]
        hidden = torch.cat([output for output, _ in encoded], dim=-1)
        pooled = encoded[-1][1]
        return Conditioning(hidden, {} if pooled is None else {"text_embeds": pooled})

    def with_framings(self, conditioning: Conditioning, framings: list[Framing]) -> Conditioning:
        return conditioning

    def predict(self, noisy_latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        prediction: Tensor = self.unet(
            noisy_latents,
            times,
            conditioning.hidden,
            added_cond_kwargs=dict(conditioning.added) or None,
        ).sample
        return prediction

    def file_tensors(self, part: str) -> dict[str, FileTensor]:
        return self._networks[part].file_tensors(self.source)

    def initial_values(self, part: str) -> list[Tensor]:
        return self._networks[part].initial_values(self.source)

    def lora_layers(self) -> list[LoraLayer]:
        return self.lora_layers_of(self._networks)

    @classmethod
    def lora_layers_of(cls, networks: Mapping[str, Network]) -> list[LoraLayer]:
        has_checkpoint_names = cls.has_checkpoint_names_in_loras
        return list(lora_layers(networks, has_checkpoint_names=has_checkpoint_names))

    @classmethod
    def checkpoint_tensors(
        cls, unet: nn.Module, vae: nn.Module, *text_encoders: nn.Module
    ) -> dict[str, Tensor]:
        """The tensors of a new checkpoint file with these modules, which `load` can read."""
        specs = zip(cls.text_encoder_specs, text_encoders, strict=True)
        places = [
            (unet, key_maps.unet_places(unet.state_dict())),
            (vae, key_maps.vae_places(vae.state_dict())),
            *((module, spec.new_places(module.state_dict())) for spec, module in specs),
        ]
        tensors: dict[str, Tensor] = {}
        for module, of_module in places:
            tensors |= key_maps.in_file_layout(module.state_dict(), of_module)
        return tensors

    @classmethod
    def has_main_parts(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a file has a U-Net for drawing, and a VAE or text encoder besides. U-Nets for
        inpainting and editing have more input channels than output channels."""
        conv_in = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
        conv_out = shapes.get(f"{UNET}out.2.weight", conv_in[1:2])
        has_equal_channels = len(conv_in) == 4 and conv_out[:1] == conv_in[1:2]
        has_vae = any(key.startswith(VAE) for key in shapes)
        has_text = any(spec.is_in(shapes) for spec in cls.text_encoder_specs)
        return has_equal_channels and (has_vae or has_text)

    @classmethod
    def _specs(cls) -> dict[str, TextEncoderSpec]:
        """The text encoders by the names of parts."""
        return text_parts(cls.text_encoder_specs)

    @classmethod
    def _require_all_parts(cls, source: CheckpointFile) -> None:
        if not any(key.startswith(VAE) for key in source.shapes):
            raise ValueError(
                f"'{source.name}' has no VAE. Name the file of one for {cls.name} with "
                "--vae; in ComfyUI, load both with ComfyUI's Load Checkpoint and Load VAE, and "
                "connect them to Model from Graph. Or choose a complete checkpoint."
            )
        missing = [spec.name for spec in cls.text_encoder_specs if not spec.is_in(source.shapes)]
        if missing:
            which = "" if len(cls.text_encoder_specs) == 1 else f" {' and '.join(missing)}"
            raise ValueError(
                f"'{source.name}' has no text encoder{which}, but U-Net, VAE and text "
                f"encoder{'s' if which else ''} are all needed. Choose a complete {cls.name} "
                "checkpoint."
            )

    @classmethod
    def _require_same_latents(cls, source: CheckpointFile, networks: dict[str, Network]) -> None:
        of_unet = networks["unet"].module.config.in_channels
        of_vae = networks["vae"].module.config.latent_channels
        if of_unet != of_vae:
            raise ValueError(
                f"The VAE of '{(source.vae or source).name}' has {of_vae} latent channels, but "
                f"the U-Net of '{source.name}' has {of_unet}. Choose a VAE for {cls.name}."
            )

    @classmethod
    def _refuse_unknown_unet_weights(cls, source: CheckpointFile, unet: Network) -> None:
        known = {place.key for place in unet.places.values()}
        for key in source.shapes:
            if key.startswith(UNET) and key not in known:
                raise ValueError(
                    f"'{source.name}' has the weight '{key}', which a {cls.name} U-Net "
                    "does not have. Choose a checkpoint without additions to the U-Net."
                )
