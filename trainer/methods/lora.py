"""LoRA (arXiv 2106.09685): trains a small change of the model's layers, which is saved as a file of
its own. The base model stays as it is, in the number format of the computation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.lora_layers import UNET_PART, LoraLayer
from ..optimization.optimizers import require_one_rate
from ..settings.config import TrainingConfig
from ..settings.effects import ByContent, Decides
from .base import Trainable, refuse_sharded
from .lora_training import LoraTrainable, continued, new
from .new_words import (
    NewWord,
    TrainableEmbedding,
    require_embedding,
    require_placeholder_in_use,
)
from .text_encoders import TextEncoderOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA(TextEncoderOptions):
    """Train a LoRA: a small file with a change of the model."""

    train_text_encoder: Decides[bool] = False
    """Train a LoRA of the text encoder too: more likeness, most of all for faces, for a third more
    time. Of Stable Diffusion XL, it is the first and smaller one of two."""
    train_text_encoder_2: Decides[bool] = False
    """Train a LoRA of the second text encoder of Stable Diffusion XL too. Models of other kinds
    have none."""
    rank: Decides[int] = 16
    """Rank of the change of each layer, which decides how much a LoRA can learn, and the size of
    its file: 4 to 32 for one subject. A layer's own size limits it."""
    alpha: Decides[float | None] = None
    """The change is multiplied by alpha / rank. Half of the rank halves the effect of the learning
    rate. Not set: the rank, so that the factor is 1."""
    conv_rank: Decides[int] = 0
    """Rank for the layers outside of attention, most of which are convolutions: they learn shapes
    and textures. The same factor as for the other layers applies. 0: they are not trained."""
    text_encoder_rank: Decides[int | None] = None
    """Rank for the text encoders. Not set: the same as the U-Net's."""
    dropout: Decides[float] = 0.0
    """Share of the ranks of the U-Net's layers that is switched off at random for each image, 0 to
    below 1: 0.1 to 0.3 against overfitting. 0: none."""
    min_rank: Decides[int | None] = None
    """Rank that the noisiest images train, such as half of the rank; images with less noise train
    more, up to the whole rank (T-LoRA). Against overfitting if there are few photos. Other ranks
    follow in proportion. The file is a plain LoRA. Not set: all images train the whole rank."""
    dora: Decides[bool] = False
    """Train the length of each layer's weights apart from their direction (DoRA): closer to
    training all weights, but slower, and not all programs read such files. ComfyUI does."""
    layers: Decides[str] = ""
    """Words with commas between them: only layers whose names contain one of them are trained. For
    example "attn2" for those that read the prompt, or "up_blocks, ff.net". Empty: all."""
    start: ByContent[Path | None] = None
    """A LoRA file to train further, with the layers, ranks and factors that it has. The result is a
    new file. Not set: a new LoRA is trained."""
    train_embedding: Decides[bool] = False
    """Also train the vectors of the embedding of the run further, and save them as a new embedding.
    Off: the vectors do not change."""
    placeholder: Decides[str] = ""
    """A new word to learn together with the LoRA, such as "<my-dog>", for the prompt. It is saved
    as an embedding, which belongs to the LoRA. Empty: none."""
    initializer: Decides[str] = ""
    """With a placeholder: what the subject is, in one or a few common words, such as "dog"."""
    num_vectors: Decides[int | None] = None
    """With a placeholder: vectors of the new word. Not set: one for each word of the initializer.
    """
    embedding_learning_rate: Decides[float | None] = None
    """Learning rate of the vectors of words, such as 5e-4, and not with Prodigy. Not set: the same
    as the LoRA's."""

    def __post_init__(self) -> None:
        TextEncoderOptions.__post_init__(self)
        for name in ("rank", "text_encoder_rank", "min_rank"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if self.conv_rank < 0:
            raise ValueError(f"conv_rank must be 0 or more, got {self.conv_rank}.")
        if self.min_rank is not None and self.min_rank > self.rank:
            raise ValueError(
                f"min_rank is {self.min_rank}, but the rank is only {self.rank}. Choose a min_rank "
                f"from 1 to {self.rank}."
            )
        if self.alpha is not None and not self.alpha > 0:
            raise ValueError(f"alpha must be above 0, got {self.alpha}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be 0 or more and below 1, got {self.dropout}.")
        rate = self.embedding_learning_rate
        if rate is not None and rate <= 0:
            raise ValueError(f"embedding_learning_rate must be above 0, got {rate}.")
        if self.word:
            self.word.check()
        elif self.initializer or self.num_vectors is not None:
            raise ValueError(
                "initializer and num_vectors describe a new word, but placeholder is empty. Set "
                "placeholder, such as '<my-dog>', or leave them out."
            )

    @property
    def word(self) -> NewWord | None:
        """The new word to learn."""
        if not self.placeholder:
            return None
        return NewWord(self.placeholder, self.initializer, self.num_vectors)

    @property
    def trained_parts(self) -> frozenset[str]:
        return frozenset()

    @property
    def encodes_captions_at_each_step(self) -> bool:
        return bool(self.trained_text_encoders or self.trains_vectors)

    @property
    def trains_vectors(self) -> bool:
        return self.train_embedding or self.word is not None

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        return list(photos)

    def check(self, config: TrainingConfig) -> None:
        refuse_sharded(config, "a LoRA")
        self.check_rates(config)
        require_one_rate(config, self.embedding_learning_rate, "embedding_learning_rate")
        if config.weights != "fp32":
            raise ValueError(
                f"weights is {config.weights}, but a LoRA itself is always trained in fp32; it is "
                "small. Set weights to fp32. The base model is kept in the precision of the run."
            )
        if self.word and config.embedding:
            raise ValueError(
                "placeholder names a new word, but the run has an embedding with a word already. "
                "Leave out placeholder, or the embedding."
            )
        if self.train_embedding:
            require_embedding(config)

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        self.require_encoders(model)
        for placeholder in model.learned_vectors:
            require_placeholder_in_use(placeholder, photos)
        adapters = continued(self, model) if self.start else new(self, model, config.seed)
        placeholders = [*model.learned_vectors] if self.train_embedding else []
        if self.word:
            self.word.add_to(model, photos, config.seed)
            require_placeholder_in_use(self.word.placeholder, photos)
            placeholders.append(self.word.placeholder)
        embeddings = [
            TrainableEmbedding(model, placeholder, config, name_suffix="-embedding",
                               learning_rate=self.embedding_learning_rate)
            for placeholder in placeholders
        ]  # fmt: skip
        return LoraTrainable(self, model, config, adapters, embeddings)

    @property
    def factor(self) -> float:
        """By which the changes are multiplied: alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def rank_of(self, layer: LoraLayer) -> int:
        """The rank of a layer's change; 0 if the layer is not trained. At most that of any change
        of the layer's weight."""
        words = [word.strip() for word in self.layers.split(",") if word.strip()]
        is_chosen = layer.part in (UNET_PART, *self.trained_text_encoders)
        if not is_chosen or (words and not any(word in layer.path for word in words)):
            return 0
        rank = self.rank if layer.is_in_transformer else self.conv_rank
        if layer.part != UNET_PART:
            rank = self.text_encoder_rank or self.rank
        num_outputs, *num_inputs = layer.shape
        return min(rank, num_outputs, torch.Size(num_inputs).numel())
