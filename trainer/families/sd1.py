"""Stable Diffusion 1.x. `layouts.py` reads the networks' architecture from the file, `constants.py`
holds what the file does not say.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import hardware, weights
from ..noise import NoiseSchedule
from ..settings.config import PredictionType
from . import key_maps
from .base import Conditioning, Framing, ModelFamily
from .constants import Constants
from .embedding import TokenTable
from .files import CheckpointFile
from .kinds import has_linear_projections
from .layouts import UNET, VAE
from .networks import FP32, Network, NumberFormats, plan_text_encoder, plan_unet, plan_vae
from .tiles import Tiles
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

TEXT = "cond_stage_model.transformer.text_model."
TEXT_WITHOUT_MODEL = "cond_stage_model.transformer."
"""Some trainers leave out `text_model.`; ComfyUI accepts both."""


class SD1(ModelFamily):
    """Stable Diffusion 1.x, and models with the same layout but other widths and depths."""

    name = "Stable Diffusion 1"
    architecture = "stable-diffusion-v1"
    base_version = "sd_v1"

    def __init__(
        self,
        source: CheckpointFile,
        constants: Constants,
        networks: dict[str, Network],
        device: torch.device,
        clip_skip: int = 1,
    ) -> None:
        self.device = device
        self.source = source
        self.clip_skip = clip_skip
        self.constants = constants
        self.unet, self.vae = networks["unet"].module, networks["vae"].module
        self.schedule = NoiseSchedule.scaled_linear(
            constants.beta_start, constants.beta_end, is_v_prediction=constants.is_v_prediction
        )
        self.native_resolution = constants.resolution
        self.latent_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._tiles = Tiles(self.vae, self.latent_factor)
        self._text_encoder: Any = networks["text_encoder"].module
        self.text_encoders = nn.ModuleList([self._text_encoder])
        self._token_table = TokenTable(self._text_encoder.get_input_embeddings())
        self._text_encoder.set_input_embeddings(self._token_table)
        self.learned_vectors = {}
        self.tokenizer = ClipTokenizer(self._text_encoder.config.max_position_embeddings)
        self._file_names = {part: network.file_names for part, network in networks.items()}

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        conv_in = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
        conv_out = shapes.get(f"{UNET}out.2.weight", conv_in[1:2])
        is_other_generation = has_linear_projections(shapes) or any(
            key.startswith(("cond_stage_model.model.", "conditioner.", f"{UNET}label_emb."))
            for key in shapes
        )
        has_more_than_unet = any(key.startswith((VAE, "cond_stage_model.")) for key in shapes)
        # Inpainting and editing models have more input channels than output channels.
        has_equal_channels = len(conv_in) == 4 and conv_out[:1] == conv_in[1:2]
        return has_equal_channels and has_more_than_unet and not is_other_generation

    @classmethod
    def load(
        cls,
        source: CheckpointFile,
        device: torch.device,
        prediction_type: PredictionType = "auto",
        clip_skip: int = 1,
        formats: NumberFormats = FP32,
    ) -> Self:
        constants = Constants.read(source, prediction_type)
        vae = source.vae or source
        networks = cls.plan_networks(source, constants, clip_skip)
        for part, network in networks.items():
            network.require_tensors(vae if part == "vae" else source)
        _require_same_latents(source, networks)
        _refuse_unknown_unet_weights(source, networks["unet"])
        networks["vae"].read_tensors(vae)
        for part in ("unet", "text_encoder"):
            networks[part].read_tensors(source, part, formats)
        return cls(source, constants, networks, device, clip_skip)

    @classmethod
    def plan_networks(
        cls, source: CheckpointFile, constants: Constants, clip_skip: int
    ) -> dict[str, Network]:
        _require_all_parts(source)
        prefix = TEXT if any(key.startswith(TEXT) for key in source.shapes) else TEXT_WITHOUT_MODEL
        return {
            "unet": plan_unet(source, constants),
            "vae": plan_vae(source.vae or source, constants),
            "text_encoder": plan_text_encoder(source, constants, prefix, clip_skip),
        }

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

    def encode_captions(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        ids = hardware.move(self.tokenizer.encode(captions), self.device)
        return Conditioning(self._text_encoder(ids).last_hidden_state)

    def token_tables(self) -> dict[str, TokenTable]:
        return {"clip_l": self._token_table}

    def predict(
        self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        prediction: Tensor = self.unet(noisy_latents, timesteps, conditioning.hidden).sample
        return prediction

    def file_tensors(self, part: str) -> dict[str, Tensor]:
        names = self._file_names[part]
        return {
            names[name]: weights.view(parameter, self.source.shapes[names[name]])
            for name, parameter in self.parts()[part].named_parameters()
        }


def checkpoint_tensors(
    unet: nn.Module, vae: nn.Module, text_encoder: nn.Module
) -> dict[str, Tensor]:
    """The tensors of a new checkpoint file with these modules, which `SD1.load` can read."""
    states = [module.state_dict() for module in (unet, vae, text_encoder)]
    names = [
        key_maps.unet_file_names(states[0]),
        key_maps.vae_file_names(states[1]),
        key_maps.text_encoder_file_names(states[2], TEXT),
    ]
    tensors: dict[str, Tensor] = {}
    for state, file_names in zip(states, names, strict=True):
        tensors.update(key_maps.in_file_layout(state, file_names))
    return tensors


def _require_all_parts(source: CheckpointFile) -> None:
    if not any(key.startswith(VAE) for key in source.shapes):
        raise ValueError(
            f"'{source.name}' has no VAE. Name the file of one for Stable Diffusion 1 with "
            "--vae; in ComfyUI, load both with ComfyUI's Load Checkpoint and Load VAE, and connect "
            "them to Model from Graph. Or choose a complete checkpoint."
        )
    if not any(key.startswith(TEXT_WITHOUT_MODEL) for key in source.shapes):
        raise ValueError(
            f"'{source.name}' has no text encoder, but U-Net, VAE and text encoder are all "
            "needed. Choose a complete Stable Diffusion 1 checkpoint."
        )


def _require_same_latents(source: CheckpointFile, networks: dict[str, Network]) -> None:
    of_unet = networks["unet"].module.config.in_channels
    of_vae = networks["vae"].module.config.latent_channels
    if of_unet != of_vae:
        raise ValueError(
            f"The VAE of '{(source.vae or source).name}' has {of_vae} latent channels, but "
            f"the U-Net of '{source.name}' has {of_unet}. Choose a VAE for Stable Diffusion 1."
        )


def _refuse_unknown_unet_weights(source: CheckpointFile, unet: Network) -> None:
    known = set(unet.file_names.values())
    for key in source.shapes:
        if key.startswith(UNET) and key not in known:
            raise ValueError(
                f"'{source.name}' has the weight '{key}', which a Stable Diffusion 1 U-Net "
                "does not have. Choose a checkpoint without additions to the U-Net."
            )
