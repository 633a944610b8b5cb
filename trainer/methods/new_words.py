"""New words: their vectors before and during training, and the embedding files that they are
written to.

Shapes: N vectors, D embedding width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import weights
from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.embedding import PLACEHOLDER_KEY, Embedding
from ..families.tokenizer import check_placeholder, has_placeholder
from ..settings.config import TrainingConfig
from .base import InitialTensors, OutputFile, Part

PERTURBATION = 0.1
"""Length of the noise added to a repeated initial vector, relative to the vector's own length, so
that vectors initialised from the same word differ."""
LENGTH_QUANTILES = (0.01, 0.99)
"""The new vectors are kept between these quantiles of the vocabulary's vector lengths: a much
longer vector drowns out the rest of the prompt."""


@dataclass(frozen=True, slots=True)
class NewWord:
    """A token that CLIP does not know yet."""

    placeholder: str
    """What it is in prompts."""
    initializer: str
    """Common words that mean about the same. Training starts from their vectors."""
    num_vectors: int | None = None
    """None: one for each word of the initializer."""

    def check(self) -> None:
        """Raises ValueError for words and numbers that cannot be used."""
        check_placeholder(self.placeholder)
        if not self.initializer.strip():
            raise ValueError(
                "The initializer is empty. Name the subject in one or more common words, such as "
                "'dog'."
            )
        if self.num_vectors is not None and self.num_vectors < 1:
            raise ValueError(f"num_vectors must be 1 or more, got {self.num_vectors}.")

    def add_to(self, model: ModelFamily, photos: Sequence[Example], seed: int) -> None:
        """Add the word to a model's vocabulary. Raises ValueError if the model has no tokens for
        the initializer, or if a caption has no room for the vectors."""
        model.add_embedding(Embedding(self.placeholder, self._initial_vectors(model, seed)))
        for photo in photos:
            for caption in photo.captions:
                self._require_room(model, photo, caption)

    def _initial_vectors(self, model: ModelFamily, seed: int) -> dict[str, Tensor]:
        """The initial vectors [N, D] by text encoder: those of the initializer's words, then, if
        more are needed, the same words again with a little noise added."""
        token_ids = self._initializer_ids(model)
        num_vectors = self.num_vectors or len(token_ids)
        repeated_ids = [token_ids[i % len(token_ids)] for i in range(num_vectors)]
        generator = torch.Generator().manual_seed(seed)
        initial = {}
        for name, table in model.token_tables().items():
            vectors = table.weight[repeated_ids].detach().cpu().float()
            noise = torch.nn.functional.normalize(torch.randn(vectors.shape, generator=generator))
            noise[: len(token_ids)] = 0
            initial[name] = vectors + PERTURBATION * vectors.norm(dim=1, keepdim=True) * noise
        return initial

    def _initializer_ids(self, model: ModelFamily) -> list[int]:
        """One token id for each word of the initializer. Raises ValueError if a word has no single
        token or if `num_vectors` does not fit."""
        try:
            token_ids = model.tokenizer.word_ids(self.initializer)
        except ValueError as error:
            raise ValueError(f"The initializer cannot be used: {error}") from None
        num_vectors = self.num_vectors or len(token_ids)
        if num_vectors < len(token_ids):
            raise ValueError(
                f"The initializer {self.initializer!r} has {len(token_ids)} words, but num_vectors "
                f"is {num_vectors}. Set num_vectors to {len(token_ids)} or more, or use fewer "
                "words."
            )
        if num_vectors > model.tokenizer.max_caption_tokens:
            raise ValueError(
                f"num_vectors is {num_vectors}, but a prompt has room for only "
                f"{model.tokenizer.max_caption_tokens} tokens. Set it to 8 or less, to "
                "leave room for the rest of the prompt."
            )
        return token_ids

    def _require_room(self, model: ModelFamily, photo: Example, caption: str) -> None:
        if has_placeholder(model.tokenizer.cut_text(caption), self.placeholder):
            num_vectors = len(next(iter(model.learned_vectors[self.placeholder].values())))
            raise ValueError(
                f"The caption of '{photo.path.name}' has no room for all {num_vectors} vectors of "
                f"{self.placeholder!r}: {caption!r}. Shorten the caption, or lower num_vectors."
            )


def require_embedding(config: TrainingConfig) -> None:
    """Raises ValueError for `train_embedding` in a run without an embedding to train further."""
    if config.embedding is None:
        raise ValueError(
            "train_embedding is on, but the run has no embedding. Set embedding to the file of a "
            "textual inversion, or switch train_embedding off."
        )


def require_placeholder_in_use(placeholder: str, photos: Sequence[Example]) -> None:
    """Raises ValueError if no caption contains the placeholder."""
    captions = [caption for photo in photos for caption in photo.captions]
    if not any(has_placeholder(caption, placeholder) for caption in captions):
        raise ValueError(
            f"The embedding's placeholder {placeholder!r} appears in no caption, so the embedding "
            f"would have no effect. Add it to dataset.prompt, for example 'a photo of "
            f"{placeholder}' (now {captions[0]!r})."
        )


class TrainableEmbedding:
    """The vectors of a placeholder in training, and the file that they are written to."""

    def __init__(
        self,
        model: ModelFamily,
        placeholder: str,
        config: TrainingConfig,
        *,
        name_suffix: str = "",
        learning_rate: float | None = None,
        directional: bool = False,
    ) -> None:
        """`learning_rate`: None: the run's. `directional`: the vectors get the mean length of the
        vocabulary's and keep it."""
        self._vectors = model.learned_vectors[placeholder]
        for vectors in self._vectors.values():
            vectors.requires_grad_(True)
        range_of = _mean_length if directional else _length_range
        self._length_ranges = {
            name: range_of(table.weight) for name, table in model.token_tables().items()
        }
        if directional:
            self.clamp_lengths()
        rate, output = learning_rate or config.optimizer.learning_rate, config.output
        self.part = Part(
            "embedding", list(self._vectors.values()), rate, decays=False, directional=directional
        )
        self.file = OutputFile(
            kind="embedding",
            original=InitialTensors(self.tensors()),
            parts=[self.part],
            output=replace(
                output,
                folder=output.embedding_folder or output.folder,
                name=output.name + name_suffix,
            ).in_subfolder(),
            metadata={
                "modelspec.architecture": f"{model.architecture}/textual-inversion",
                "modelspec.trigger_phrase": placeholder,
                PLACEHOLDER_KEY: placeholder,
            },
        )

    def tensors(self) -> dict[str, Tensor]:
        """The current vectors, by their names in the file."""
        return {name: vectors.detach() for name, vectors in self._vectors.items()}

    @torch.no_grad()
    def clamp_lengths(self) -> None:
        """Scale vectors that are shorter or longer than the vocabulary's to the nearest allowed
        length."""
        for name, vectors in self._vectors.items():
            lengths = vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
            vectors.mul_(lengths.clamp(*self._length_ranges[name]) / lengths)


def _length_range(table: Tensor) -> tuple[float, float]:
    """The shortest and longest length allowed, from a table of token embeddings."""
    shortest, longest = _lengths(table).quantile(torch.tensor(LENGTH_QUANTILES)).tolist()
    return shortest, longest


def _mean_length(table: Tensor) -> tuple[float, float]:
    """The mean length of the vectors in a table, as the only one allowed."""
    mean = _lengths(table).mean().item()
    return mean, mean


def _lengths(table: Tensor) -> Tensor:
    # On the CPU, because quantile needs both tensors on one device.
    return weights.value(table).norm(dim=1).cpu()
