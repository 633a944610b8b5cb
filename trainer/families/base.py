"""The contract between one Stable Diffusion generation and everything that trains or samples it.

Shapes: B batch, C latent channels, H W pixels, h w latents, L tokens, D width."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..noise import NoiseSchedule
from .embedding import Embedding, WordTable
from .files import CheckpointFile
from .tokenizer import ClipTokenizer

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

    from diffusers import AutoencoderKL, UNet2DConditionModel


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture was brought to its training size; Stable Diffusion XL is told it."""

    original_size: tuple[int, int]
    """Width and height of the file, in pixels."""
    crop: tuple[int, int]
    """Pixels cut off at the left and the top, after resizing."""
    size: tuple[int, int]
    """Width and height trained at, in pixels."""


@dataclass(frozen=True, slots=True)
class Conditioning:
    """What the U-Net is told besides noisy latents and timesteps."""

    hidden: Tensor
    """Text encoder output [B, L, D]."""

    @staticmethod
    def stack(parts: list[Conditioning]) -> Conditioning:
        return Conditioning(torch.cat([part.hidden for part in parts]))


class ModelFamily(ABC):
    """A loaded checkpoint that can encode, predict, and name its weights as its file does."""

    name: ClassVar[str]
    """For people: "Stable Diffusion 1"."""
    architecture: ClassVar[str]
    """As ModelSpec calls it: "stable-diffusion-v1"."""
    base_version: ClassVar[str]
    """As `ss_base_model_version` has it: "sd_v1"."""
    uses_framing: ClassVar[bool] = False
    """Whether `encode_captions` gives something else for another framing."""
    source: CheckpointFile
    """The file it came from. What training leaves alone is copied from it, bit for bit."""
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: nn.ModuleList
    tokenizer: ClipTokenizer
    learned: dict[str, dict[str, nn.Parameter]]
    """Vectors of learned words by text encoder, by placeholder. Frozen unless a method trains them.
    """
    schedule: NoiseSchedule
    native_resolution: int
    """Width and height it was made for, in pixels."""
    latent_factor: int
    """Pixels per latent, along each side."""

    @classmethod
    @abstractmethod
    def matches(cls, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether a file with tensors of these names and shapes is of this family."""

    @classmethod
    @abstractmethod
    def load(cls, source: CheckpointFile, device: torch.device) -> Self:
        """The model in fp32, frozen and in eval mode. ValueError names what the file lacks, before
        any weight is read."""

    @abstractmethod
    def encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation [B, C, h, w] of the scaled latents of pixels [B, 3, H, W]."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] in about [-1, 1] of scaled latents [B, C, h, w]."""

    @abstractmethod
    def encode_captions(self, captions: list[str], framings: list[Framing]) -> Conditioning: ...

    @abstractmethod
    def word_tables(self) -> dict[str, WordTable]:
        """Each text encoder's token table, by its name in an embedding file."""

    @abstractmethod
    def predict(self, noisy_latents: Tensor, timesteps: Tensor, given: Conditioning) -> Tensor:
        """The U-Net's prediction [B, C, h, w]."""

    @abstractmethod
    def file_tensors(self, part: str) -> dict[str, Tensor]:
        """The parameters of one of `parts`, as they are now, under the names and in the shapes that
        the checkpoint file gives them. Views, on the model's device."""

    def add_embedding(self, embedding: Embedding) -> dict[str, nn.Parameter]:
        """Let a placeholder stand for its vectors in every caption from now on. Gives the vectors,
        frozen, by text encoder. ValueError for vectors that were made for another family, and for a
        placeholder that is taken."""
        word, tables = embedding.placeholder, self.word_tables()
        if word.lower() in map(str.lower, self.learned):
            raise ValueError(
                f"The placeholder {word!r} stands for another embedding already. Choose another "
                "placeholder, or leave out the other embedding."
            )
        for name, table in tables.items():
            _require_fit(embedding, name, table.weight.shape[1], self)
        ids: list[int] = []
        parameters = {}
        for name, table in tables.items():
            ids, parameters[name] = table.add(embedding.vectors[name])
        self.tokenizer.add_placeholder(word, ids)
        self.learned[word] = parameters
        return parameters

    def parts(self) -> dict[str, nn.Module]:
        """What a method may train: "unet", "text_encoder" and, with two, "text_encoder_2"."""
        named: dict[str, nn.Module] = {"unet": self.unet}
        for number, text_encoder in enumerate(self.text_encoders, start=1):
            named["text_encoder" if number == 1 else f"text_encoder_{number}"] = text_encoder
        return named

    def embeddings(self) -> list[Tensor]:
        """The text encoders' embeddings, and the learned words. Of these, bitsandbytes advises to
        keep an optimizer's states in 32 bits (arXiv 2110.02861; its StableEmbedding does)."""
        kinds = (nn.Embedding, WordTable)
        tables = [m.weight for m in self.text_encoders.modules() if isinstance(m, kinds)]
        learned = [vectors for word in self.learned.values() for vectors in word.values()]
        return [*tables, *learned]

    def prepare_for_training(
        self, *, gradient_checkpointing: bool, channels_last: bool, compiled: bool
    ) -> None:
        """Trade memory and waiting for speed; what is computed stays the same."""
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        if gradient_checkpointing:
            # transformers keeps checkpointing to training mode, which changes nothing else here:
            # these networks drop nothing out.
            self.unet.train().enable_gradient_checkpointing()
            encoder: Any  # transformers' class; nn.ModuleList forgets it
            for encoder in self.text_encoders:
                encoder.train()
                if hasattr(encoder, "activation_checkpointing_enable"):  # transformers 5's name
                    encoder.activation_checkpointing_enable({"use_reentrant": False})
                else:
                    encoder.gradient_checkpointing_enable({"use_reentrant": False})
        if compiled:
            self.unet.compile()

    @contextmanager
    def on_device(self, module: nn.Module) -> Iterator[None]:
        """Inside, one of the model's modules is on its device; afterwards it is where it was."""
        home = next(module.parameters()).device
        try:
            module.to(self.device)
            yield
        finally:
            module.to(home)

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def device(self) -> torch.device:
        """Where the U-Net is. The VAE and the text encoders may wait on the CPU."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def latent_channels(self) -> int:
        return int(self.unet.config.in_channels)


def _require_fit(embedding: Embedding, name: str, width: int, model: ModelFamily) -> None:
    if name not in embedding.vectors:
        raise ValueError(
            f"The embedding of {embedding.placeholder!r} is for the text encoders "
            f"{', '.join(embedding.vectors)}, and {model.name} needs one for {name}. Choose an "
            f"embedding for {model.name}."
        )
    found = embedding.vectors[name].shape[1]
    if found != width:
        raise ValueError(
            f"The vectors of {embedding.placeholder!r} have {found} numbers, and the text encoder "
            f"of '{model.path.name}' takes {width}. Choose an embedding that was trained for this "
            "kind of model."
        )
