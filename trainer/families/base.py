"""The interface of one Stable Diffusion generation to everything that trains or samples it.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .. import weights
from ..noise import NoiseProcess
from ..settings.config import PredictionType
from ..weights import FileTensor
from .compilation import compile_blocks, enable_checkpointing
from .embedding import Embedding, TokenTable
from .files import CheckpointFile
from .lora_layers import LoraLayer
from .networks import FP32, Network, NumberFormats
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

    from diffusers import AutoencoderKL, UNet2DConditionModel

    from .constants import Constants
    from .text_encoders import TextEncoder

MAIN_MEMORY = torch.device("cpu")
Part = TypeVar("Part")
"""A network, or what describes one."""


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image was resized and cropped: the size and crop conditioning of Stable Diffusion XL.
    All in pixels."""

    original_size: tuple[int, int]
    """Width and height of the image before resizing."""
    crop: tuple[int, int]
    """Width cut off at the left and height cut off at the top, after resizing."""
    size: tuple[int, int]
    """Width and height of the result, which is trained on."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """The U-Net's inputs besides noisy latents and times. All tensors begin with B."""

    hidden: Tensor
    """Text encoder output [B, L, D]."""
    added: Mapping[str, Tensor] = field(default_factory=dict)
    """More inputs, by diffusers' names (`added_cond_kwargs`). Those of Stable Diffusion XL are the
    pooled text encoder output "text_embeds" [B, P] and the sizes "time_ids" [B, 6]."""

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        """One batch of all parts."""
        first = parts[0]
        return Conditioning(
            torch.cat([part.hidden for part in parts]),
            {name: torch.cat([part.added[name] for part in parts]) for name in first.added},
        )

    def map(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        """With each tensor changed."""
        added = {name: change(tensor) for name, tensor in self.added.items()}
        return Conditioning(change(self.hidden), added)


class ModelFamily(ABC):
    """A loaded checkpoint. Encodes, predicts, and names its weights as the checkpoint file does."""

    name: ClassVar[str]
    """Shown to users: "Stable Diffusion 1"."""
    architecture: str
    """The name in ModelSpec metadata: "stable-diffusion-v1"."""
    architecture_of_v: ClassVar[str] = ""
    """The same of a model that predicts v, if it has another name."""
    base_version: ClassVar[str]
    """The value of `ss_base_model_version` in metadata: "sd_v1"."""
    usual_clip_skip: ClassVar[int]
    """The `clip_skip` that the published models were trained with."""
    device: torch.device
    """Where the model computes. Its networks are in main memory, except while they are at work."""
    source: CheckpointFile
    """The checkpoint file. Weights that are not trained are copied from it, bit for bit."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    encoders: tuple[TextEncoder, ...]
    """The text encoders, with their tokenizers."""
    text_encoders: nn.ModuleList
    """The networks of `encoders`."""
    learned_vectors: dict[str, dict[str, nn.Parameter]]
    """The vectors [N, D] of each placeholder, by text encoder. Frozen unless a method trains them.
    """
    noise: NoiseProcess
    native_resolution: int
    """Width and height that the model was trained at, in pixels."""
    latent_factor: int
    """Pixels per latent along each side."""
    clip_skip: int
    """The layer of the text encoders whose output is used, counted from the last one, which is 1.
    """
    _has_dropped_text_encoders = False

    @classmethod
    @abstractmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a file with tensors of these names and shapes belongs to this family."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        source: CheckpointFile,
        constants: Constants,
        device: torch.device,
        clip_skip: int,
        formats: NumberFormats = FP32,
    ) -> Self:
        """The model, frozen, in eval mode and in main memory. Raises ValueError, before any weight
        is read, if the file lacks something."""

    @classmethod
    @abstractmethod
    def read_constants(
        cls, source: CheckpointFile, prediction_type: PredictionType = "auto"
    ) -> Constants:
        """What the tensors' shapes do not say, from the file and the setting. Raises ValueError if
        the file says something that is not supported."""

    @classmethod
    @abstractmethod
    def plan_networks(
        cls, source: CheckpointFile, constants: Constants, clip_skip: int
    ) -> dict[str, Network]:
        """The networks of a checkpoint, built without weights: "vae", and the trainable ones by the
        names of `parts`. Raises ValueError if the file lacks one of them or its layout cannot be
        read."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [B, C, h, w] of the scaled latents of pixels [B, 3, H, W] in
        [-1, 1]."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W], roughly in [-1, 1], from scaled latents [B, C, h, w]."""

    @abstractmethod
    def encode_captions(self, captions: list[str]) -> Conditioning:
        """The conditioning of B captions, without what depends on the framings of images."""

    @abstractmethod
    def with_framings(self, conditioning: Conditioning, framings: list[Framing]) -> Conditioning:
        """The conditioning of B images that are framed so."""

    @abstractmethod
    def predict(self, noisy_latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The U-Net's prediction [B, C, h, w] at times [B]."""

    @abstractmethod
    def file_tensors(self, part: str) -> dict[str, FileTensor]:
        """The current parameters of one of `parts`, as the tensors that the checkpoint file has of
        them. In the number format of memory: `trainer/weights.py` tells their values."""

    @abstractmethod
    def initial_values(self, part: str) -> list[Tensor]:
        """The values of the parameters of one of `parts` in the file, in their order, on the CPU
        and in the file's number formats. Do not change them in place."""

    @abstractmethod
    def lora_layers(self) -> list[LoraLayer]:
        """The layers that a LoRA can change, those of the U-Net first."""

    @classmethod
    @abstractmethod
    def lora_layers_of(cls, networks: Mapping[str, Network]) -> list[LoraLayer]:
        """The same of `plan_networks`."""

    def add_embedding(self, embedding: Embedding) -> dict[str, nn.Parameter]:
        """Replace a placeholder by its vectors in all captions from now on. Returns the vectors,
        frozen, by text encoder. Raises ValueError if the vectors do not fit this model or another
        embedding has the same placeholder."""
        placeholder = embedding.placeholder
        if placeholder.lower() in map(str.lower, self.learned_vectors):
            raise ValueError(
                f"The placeholder {placeholder!r} already belongs to another embedding. Choose "
                "another placeholder, or remove the other embedding."
            )
        widths = {name: table.weight.shape[1] for name, table in self.token_tables().items()}
        embedding.require_fit(widths, self.name, self.source.name)
        parameters = {}
        for encoder in self.encoders:
            ids, parameters[encoder.name] = encoder.table.add(embedding.vectors[encoder.name])
            encoder.tokenizer.add_placeholder(placeholder, ids)
        self.learned_vectors[placeholder] = parameters
        return parameters

    def token_tables(self) -> dict[str, TokenTable]:
        """Each text encoder's token embeddings, by its name in an embedding file."""
        return {encoder.name: encoder.table for encoder in self.encoders}

    @property
    def tokenizer(self) -> ClipTokenizer:
        """The first text encoder's. Those of the others split captions in the same way."""
        return self.encoders[0].tokenizer

    def parts(self) -> dict[str, nn.Module]:
        """The networks that a method may train: "unet", "text_encoder" and, if the model has two,
        "text_encoder_2"."""
        return parts_by_name(self.unet, self.text_encoders)

    def embeddings(self) -> list[Tensor]:
        """The text encoders' embedding tables and the learned vectors. For these, bitsandbytes
        recommends 32-bit optimizer states (arXiv 2110.02861; its StableEmbedding uses them)."""
        kinds = (nn.Embedding, TokenTable)
        tables = [m.weight for m in self.text_encoders.modules() if isinstance(m, kinds)]
        learned = [v for vectors in self.learned_vectors.values() for v in vectors.values()]
        return [*tables, *learned]

    def prepare_for_training(
        self, *, gradient_checkpointing: bool, channels_last: bool, compiled: bool
    ) -> None:
        """Switch on options that trade memory or start-up time for speed. Results stay the same."""
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            for network in (self.unet, *self.text_encoders):
                enable_checkpointing(network)
        if compiled:
            compile_blocks(self.unet)

    def drop_text_encoders(self) -> None:
        """Free the memory of frozen text encoders. They are read from the file again when they are
        next at work. Those with learned vectors are kept."""
        if self.learned_vectors:
            return
        for parameter in self.text_encoders.parameters():
            # One number, which keeps the shape.
            parameter.data = parameter.data.new_zeros(()).expand(parameter.shape)
        self._has_dropped_text_encoders = True

    @abstractmethod
    def read_text_encoders(self) -> None:
        """Read the weights of the text encoders from the file again."""

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[None]:
        """Bring one of the model's networks to the model's device, and back to main memory
        afterwards. A network that is on the device already stays there."""
        if module is self.text_encoders and self._has_dropped_text_encoders:
            self.read_text_encoders()
            self._has_dropped_text_encoders = False
        is_away = next(module.parameters()).device.type != self.device.type
        try:
            if is_away:
                weights.move(module, self.device)
            yield
        finally:
            if is_away:
                weights.move(module, MAIN_MEMORY)

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)


def parts_by_name(unet: Part, text_encoders: Iterable[Part]) -> dict[str, Part]:
    """The parts of a model that may be trained, by the names that `ModelFamily.parts` lists."""
    return {"unet": unet, **text_parts(text_encoders)}


def text_parts(text_encoders: Iterable[Part]) -> dict[str, Part]:
    """Those of `parts_by_name` that encode text."""
    return {
        "text_encoder" if number == 1 else f"text_encoder_{number}": text_encoder
        for number, text_encoder in enumerate(text_encoders, start=1)
    }
