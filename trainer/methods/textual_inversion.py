"""Textual inversion (Gal et al., arXiv 2208.01618): a new word for the subject, learned as vectors
in front of a model that stays as it is.

Shapes: N vectors, D width."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.embedding import PLACEHOLDER_KEY, Embedding
from ..families.tokenizer import check_placeholder, has_placeholder
from ..settings.config import TrainingConfig
from ..settings.effects import Decides
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
"""What is written around the placeholder, one drawn at each use of a photo."""
PERTURBATION = 0.1
"""Length of the random change that sets vectors apart which start from one word, over the length of
that word's vector."""
LENGTHS = (0.01, 0.99)
"""Quantiles of the vocabulary's vector lengths, between which those of a new word are kept: far
longer ones outshout the rest of a prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextualInversion:
    """Learn a new word for the subject; the model itself stays as it is."""

    placeholder: Decides[str]
    """The new word, as prompts have it: no word of CLIP's vocabulary, such as "<my-dog>". ComfyUI's
    prompts name the file instead: embedding:my-dog."""
    initializer: Decides[str]
    """What the subject is, in one or several common words, such as "dog": where learning starts.
    """
    num_vectors: Decides[int | None] = None
    """Vectors of the new word; none takes one for each word of the initializer. More learn more of
    the subject and leave less room in prompts."""
    templates: Decides[str] = "object"
    """What is written around the placeholder, by the name in `TEMPLATES`; "captions" trains on the
    prompt and the photos' own captions, which then must have the placeholder."""

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        if not self.initializer.strip():
            raise ValueError(
                "The initializer is empty. Say in one or several common words what the subject is, "
                "such as 'dog'."
            )
        if self.num_vectors is not None and self.num_vectors < 1:
            raise ValueError(f"num_vectors must be 1 or more, got {self.num_vectors}.")
        if self.templates not in TEMPLATES:
            raise ValueError(
                f"templates must be one of {', '.join(TEMPLATES)}, got {self.templates!r}."
            )

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        """Photos with a caption of their own keep it; the others get the templates, or the prompt.
        ValueError for a caption without the placeholder."""
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
                f"prior.weight is {config.prior.weight:g}, but textual inversion leaves the model "
                "as it is, so that there is nothing for class images to preserve. Set prior.weight "
                "to 0."
            )

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        model.add_embedding(Embedding(self.placeholder, self._start(model, config.seed)))
        for photo in photos:
            for caption in photo.captions:
                self._require_room(model, photo, caption)
        return _InversionTrainable(LearnedWord(model, self.placeholder, config))

    def _start(self, model: ModelFamily, seed: int) -> dict[str, Tensor]:
        """The vectors [N, D] to begin with, by text encoder: the initializer's words, and then the
        same words again, each changed a little."""
        try:
            ids = model.tokenizer.word_ids(self.initializer)
        except ValueError as error:
            raise ValueError(f"The initializer does not fit: {error}") from None
        num_vectors = self.num_vectors or len(ids)
        if num_vectors < len(ids):
            raise ValueError(
                f"The initializer {self.initializer!r} has {len(ids)} words, and num_vectors is "
                f"{num_vectors}. Set num_vectors to {len(ids)} or more, or leave out words."
            )
        if num_vectors > model.tokenizer.max_caption_tokens:
            raise ValueError(
                f"num_vectors is {num_vectors}, and a prompt has room for "
                f"{model.tokenizer.max_caption_tokens}. Set it to 8 or less: prompts need room too."
            )
        generator = torch.Generator().manual_seed(seed)
        starts = {}
        for name, table in model.token_tables().items():
            words = table.weight[[ids[i % len(ids)] for i in range(num_vectors)]].detach().cpu()
            words = words.float()
            noise = torch.nn.functional.normalize(torch.randn(words.shape, generator=generator))
            noise[: len(ids)] = 0
            starts[name] = words + PERTURBATION * words.norm(dim=1, keepdim=True) * noise
        return starts

    def _require_placeholder(self, photo: Example, caption: str) -> None:
        if not has_placeholder(caption, self.placeholder):
            others = ", ".join(name for name in TEMPLATES if name != OWN_CAPTIONS)
            raise ValueError(
                f"The caption of '{photo.path.name}' lacks the placeholder {self.placeholder!r}: "
                f"{caption!r}. Write it there, or choose other templates ({others})."
            )

    def _require_room(self, model: ModelFamily, photo: Example, caption: str) -> None:
        if has_placeholder(model.tokenizer.cut_text(caption), self.placeholder):
            num_vectors = len(next(iter(model.learned_vectors[self.placeholder].values())))
            raise ValueError(
                f"The caption of '{photo.path.name}' has no room for all {num_vectors} vectors of "
                f"{self.placeholder!r}: {caption!r}. Shorten it, or set num_vectors lower."
            )


class LearnedWord:
    """The vectors of a placeholder in training, kept about as long as those of other words."""

    def __init__(
        self, model: ModelFamily, placeholder: str, config: TrainingConfig, *, name_suffix: str = ""
    ) -> None:
        self._vectors = model.learned_vectors[placeholder]
        for vectors in self._vectors.values():
            vectors.requires_grad_(True)
        self._lengths = {name: _lengths(t.weight) for name, t in model.token_tables().items()}
        rate, output = config.optimizer.learning_rate, config.output
        self.part = Part("embedding", list(self._vectors.values()), rate, decays=False)
        self.file = OutputFile(
            kind="embedding",
            original=_Vectors(self.tensors()),
            parts=[self.part],
            output=replace(
                output,
                folder=output.embedding_folder or output.folder,
                name=output.name + name_suffix,
            ),
            metadata={
                "modelspec.architecture": f"{model.architecture}/textual-inversion",
                "modelspec.trigger_phrase": placeholder,
                PLACEHOLDER_KEY: placeholder,
            },
        )

    def tensors(self) -> dict[str, Tensor]:
        """The live vectors, under their names in the file."""
        return {name: vectors.detach() for name, vectors in self._vectors.items()}

    @torch.no_grad()
    def keep_length(self) -> None:
        """Bring vectors that left the range of the vocabulary's lengths back to its edge."""
        for name, vectors in self._vectors.items():
            lengths = vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
            vectors.mul_(lengths.clamp(*self._lengths[name]) / lengths)


def _lengths(table: Tensor) -> tuple[float, float]:
    # On the CPU, like the quantiles asked for: torch wants both on one device.
    lengths = table.float().norm(dim=1).cpu()
    shortest, longest = lengths.quantile(torch.tensor(LENGTHS)).tolist()
    return shortest, longest


class _Vectors:
    """Vectors as they were before training, as an `Original`."""

    metadata: Mapping[str, str] = {}

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: tensor.cpu().clone() for name, tensor in tensors.items()}
        self.dtypes = {name: tensor.dtype for name, tensor in self._tensors.items()}

    def tensor(self, key: str) -> Tensor:
        return self._tensors[key]


class _InversionTrainable(Trainable):
    trains_text_encoder = True

    def __init__(self, word: LearnedWord) -> None:
        self._word = word
        self.parts, self.files = [word.part], [word.file]

    def part_tensors(self, part: Part) -> dict[str, Tensor]:
        return self._word.tensors()

    def after_step(self) -> None:
        self._word.keep_length()
