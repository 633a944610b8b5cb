"""Stable Diffusion 1.x: the networks' shapes come from the file, what shapes cannot tell from
`constants.py`.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..noise import NoiseSchedule
from . import key_maps
from .base import Conditioning, Framing, ModelFamily
from .constants import Constants
from .embedding import WordTable
from .files import CheckpointFile
from .kinds import has_linear_projections
from .layouts import UNET, VAE
from .networks import Network, plan_text_encoder, plan_unet, plan_vae
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

TEXT = "cond_stage_model.transformer.text_model."
TEXT_WITHOUT_MODEL = "cond_stage_model.transformer."
"""Some trainers leave out `text_model.`; ComfyUI reads both."""


class SD1(ModelFamily):
    """Stable Diffusion 1.x and whatever has its layout, however wide or deep."""

    name = "Stable Diffusion 1"
    architecture = "stable-diffusion-v1"
    base_version = "sd_v1"

    def __init__(
        self, source: CheckpointFile, constants: Constants, networks: dict[str, Network]
    ) -> None:
        self.source = source
        self.constants = constants
        self.unet, self.vae = networks["unet"].module, networks["vae"].module
        self.schedule = NoiseSchedule.scaled_linear(
            constants.beta_start, constants.beta_end, is_v_prediction=constants.is_v_prediction
        )
        self.native_resolution = constants.resolution
        self.latent_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self._text_encoder: Any = networks["text_encoder"].module
        self.text_encoders = nn.ModuleList([self._text_encoder])
        self._words = WordTable(self._text_encoder.get_input_embeddings())
        self._text_encoder.set_input_embeddings(self._words)
        self.learned = {}
        self.tokenizer = ClipTokenizer(self._text_encoder.config.max_position_embeddings)
        self._file_names = {part: network.file_names for part, network in networks.items()}

    @classmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        conv_in = shapes.get(f"{UNET}input_blocks.0.0.weight", ())
        conv_out = shapes.get(f"{UNET}out.2.weight", conv_in[1:2])
        is_foreign = any(
            key.startswith(("cond_stage_model.model.", "conditioner.", f"{UNET}label_emb."))
            for key in shapes
        )
        has_more = any(key.startswith((VAE, "cond_stage_model.")) for key in shapes)
        is_plain = len(conv_in) == 4 and conv_out[:1] == conv_in[1:2]
        return is_plain and has_more and not is_foreign and not has_linear_projections(shapes)

    @classmethod
    def load(cls, source: CheckpointFile, device: torch.device) -> Self:
        _require_all_parts(source)
        constants = Constants.read(source)
        prefix = TEXT if any(key.startswith(TEXT) for key in source.shapes) else TEXT_WITHOUT_MODEL
        networks = {
            "unet": plan_unet(source, constants),
            "vae": plan_vae(source, constants),
            "text_encoder": plan_text_encoder(source, constants, prefix),
        }
        for network in networks.values():
            network.require_tensors(source)
        _refuse_unknown_unet_weights(source, networks["unet"])
        for network in networks.values():
            network.read_tensors(source, device)
        return cls(source, constants, networks)

    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(pixels).latent_dist
        return latents.mean * self.constants.latent_scale, latents.std * self.constants.latent_scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        pixels: Tensor = self.vae.decode(latents / self.constants.latent_scale).sample
        return pixels

    def encode_captions(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        ids = self.tokenizer.encode(captions).to(self.device)
        return Conditioning(self._text_encoder(ids).last_hidden_state)

    def word_tables(self) -> dict[str, WordTable]:
        return {"clip_l": self._words}

    def predict(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> Tensor:
        prediction: Tensor = self.unet(noisy_latents, timesteps, given.hidden).sample
        return prediction

    def file_tensors(self, part: str) -> dict[str, Tensor]:
        names = self._file_names[part]
        return {
            names[name]: parameter.detach().view(self.source.shapes[names[name]])
            for name, parameter in self.parts()[part].named_parameters()
        }


def checkpoint_tensors(
    unet: nn.Module, vae: nn.Module, text_encoder: nn.Module
) -> dict[str, Tensor]:
    """The tensors of a new checkpoint file made of these modules, as `SD1.load` reads it."""
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
    for part, prefix in (("VAE", VAE), ("text encoder", TEXT_WITHOUT_MODEL)):
        if not any(key.startswith(prefix) for key in source.shapes):
            raise ValueError(
                f"'{source.path.name}' has no {part}, and U-Net, VAE and text encoder are all "
                "needed. Choose a complete Stable Diffusion 1 checkpoint."
            )


def _refuse_unknown_unet_weights(source: CheckpointFile, unet: Network) -> None:
    known = set(unet.file_names.values())
    for key in source.shapes:
        if key.startswith(UNET) and key not in known:
            raise ValueError(
                f"'{source.path.name}' has the weight '{key}', which a Stable Diffusion 1 U-Net "
                "has no place for. Choose a checkpoint without additions to the U-Net."
            )
