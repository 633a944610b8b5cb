"""Textual inversion (Gal et al., arXiv 2208.01618): trains the token embedding of a new word for
the subject, while the model stays frozen.

Shapes: N vectors, D embedding width."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .. import weights
from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.embedding import PLACEHOLDER_KEY, Embedding
from ..families.tokenizer import check_placeholder, has_placeholder
from ..settings.config import TrainingConfig
from ..settings.effects import Decides
from ..weights import FileTensor
from .base import OutputFile, Part, Trainable

logger = logging.getLogger(__name__)

OWN_CAPTIONS = "captions"
TEMPLATES: dict[str, tuple[str, ...]] = {
    OWN_CAPTIONS: (),
    "object": (
        "a photo of {}",
        "a picture of {}",
        "a photograph showing {}",
        "a sharp photo of {}",
        "a snapshot of {}",
        "a bright photo of {}",
        "a dim photo of {}",
        "a photo of {} from close by",
        "a photo of {} from a distance",
        "{} seen from one side",
        "a plain photo of {}",
        "a detailed picture of {}",
        "a photo with {} in the middle",
        "an ordinary photo of {}",
        "a photo of {} and nothing else",
        "a cropped photo of {}",
    ),
    "style": (
        "a picture in the style of {}",
        "a painting in the style of {}",
        "a drawing in the style of {}",
        "an artwork in the style of {}",
        "an illustration in the style of {}",
        "a detail of a picture in the style of {}",
        "a small picture in the style of {}",
        "a large painting in the style of {}",
        "a colourful picture in the style of {}",
        "a quiet picture in the style of {}",
        "a scene in the style of {}",
        "a picture made by {}",
    ),
    "face": (
        "a photo of {}",
        "a portrait of {}",
        "a photo of the face of {}",
        "a close portrait of {}",
        "a picture of {} looking at the camera",
        "a picture of {} looking away",
        "a snapshot of {}",
        "a bright photo of {}",
        "a dim photo of {}",
        "a photo of {} from the side",
        "a photo of {} from the waist up",
        "a photo of {} outdoors",
        "a photo of {} indoors",
        "an ordinary photo of {}",
    ),
}
"""Caption templates by name; {} is the placeholder. Each use of a photo draws one at random."""
PERTURBATION = 0.1
"""Length of the noise added to a repeated initial vector, relative to the vector's own length, so
that vectors initialised from the same word differ."""
LENGTH_QUANTILES = (0.01, 0.99)
"""The new vectors are kept between these quantiles of the vocabulary's vector lengths: a much
longer vector drowns out the rest of the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextualInversion:
    """Learn a new word for the subject; the model itself does not change."""

    placeholder: Decides[str]
    """The new token as it stands in prompts: one word that CLIP does not know yet, such as
    "<my-dog>". ComfyUI's own prompts use the file name instead: "embedding:my-dog"."""
    initializer: Decides[str]
    """What the subject is, in one or a few common words, such as "dog" or "white cup". Training
    starts from their meaning; a word far from the subject is a bad start."""
    num_vectors: Decides[int | None] = None
    """Vectors of the new token: 2 to 8 for more likeness. Each takes the place of one of a prompt's
    75 tokens, and many drown out the rest of the prompt. Not set: one for each word of the
    initializer."""
    templates: Decides[str] = "object"
    """Sentences around the placeholder: those for an "object", a "style" or a "face", or "captions"
    for the instance prompt alone, with which the token also learns what else is in the photos. A
    photo's own caption comes first. Prompt and captions must contain the placeholder. Use
    "captions" for the toy model, which knows few words of the sentences."""

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        if not self.initializer.strip():
            raise ValueError(
                "The initializer is empty. Name the subject in one or more common words, such as "
                "'dog'."
            )
        if self.num_vectors is not None and self.num_vectors < 1:
            raise ValueError(f"num_vectors must be 1 or more, got {self.num_vectors}.")
        if self.templates not in TEMPLATES:
            raise ValueError(
                f"templates must be one of {', '.join(TEMPLATES)}, got {self.templates!r}."
            )

    @property
    def trained_parts(self) -> frozenset[str]:
        return frozenset()

    @property
    def encodes_captions_at_each_step(self) -> bool:
        return True

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        """Photos with their own caption keep it; the others get the templates, or with "captions"
        the prompt. Raises ValueError for a caption without the placeholder."""
        filled = tuple(text.format(self.placeholder) for text in TEMPLATES[self.templates])
        captioned = [
            replace(photo, captions=filled) if filled and photo.captions == (prompt,) else photo
            for photo in photos
        ]
        for photo in captioned:
            for caption in photo.captions:
                self._require_placeholder(photo, caption)
        return captioned

    def check(self, config: TrainingConfig) -> None:
        if config.prior.weight > 0:
            raise ValueError(
                f"prior.weight is {config.prior.weight:g}, but textual inversion does not change "
                "the model, so class images have nothing to preserve. Set prior.weight to 0."
            )

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        model.add_embedding(Embedding(self.placeholder, self._initial_vectors(model, config.seed)))
        for photo in photos:
            for caption in photo.captions:
                self._require_room(model, photo, caption)
        return _InversionTrainable(TrainableEmbedding(model, self.placeholder, config))

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

    def _require_placeholder(self, photo: Example, caption: str) -> None:
        if not has_placeholder(caption, self.placeholder):
            others = ", ".join(name for name in TEMPLATES if name != OWN_CAPTIONS)
            raise ValueError(
                f"The caption of '{photo.path.name}' lacks the placeholder {self.placeholder!r}: "
                f"{caption!r}. Add it to the caption, or choose other templates ({others})."
            )

    def _require_room(self, model: ModelFamily, photo: Example, caption: str) -> None:
        if has_placeholder(model.tokenizer.cut_text(caption), self.placeholder):
            num_vectors = len(next(iter(model.learned_vectors[self.placeholder].values())))
            raise ValueError(
                f"The caption of '{photo.path.name}' has no room for all {num_vectors} vectors of "
                f"{self.placeholder!r}: {caption!r}. Shorten the caption, or lower num_vectors."
            )


class TrainableEmbedding:
    """The vectors of a placeholder in training, and the file that they are written to."""

    def __init__(
        self, model: ModelFamily, placeholder: str, config: TrainingConfig, *, name_suffix: str = ""
    ) -> None:
        self._vectors = model.learned_vectors[placeholder]
        for vectors in self._vectors.values():
            vectors.requires_grad_(True)
        self._length_ranges = {
            name: _length_range(table.weight) for name, table in model.token_tables().items()
        }
        rate, output = config.optimizer.learning_rate, config.output
        self.part = Part("embedding", list(self._vectors.values()), rate, decays=False)
        self.file = OutputFile(
            kind="embedding",
            original=_InitialVectors(self.tensors()),
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
    # On the CPU, because quantile needs both tensors on one device.
    lengths = weights.value(table).norm(dim=1).cpu()
    shortest, longest = lengths.quantile(torch.tensor(LENGTH_QUANTILES)).tolist()
    return shortest, longest


class _InitialVectors:
    """A copy of the vectors from before training, as the `Original` of their file."""

    metadata: Mapping[str, str] = {}

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


class _InversionTrainable(Trainable):
    trains_text_encoder = True

    def __init__(self, embedding: TrainableEmbedding) -> None:
        self._embedding = embedding
        self.parts, self.files = [embedding.part], [embedding.file]

    def part_tensors(self, part: Part) -> Mapping[str, FileTensor]:
        return self._embedding.tensors()

    def after_step(self) -> None:
        self._embedding.clamp_lengths()
