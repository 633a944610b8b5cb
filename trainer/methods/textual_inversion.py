"""Textual inversion (Gal et al., arXiv 2208.01618): trains the token embedding of a new word for
the subject, while the model stays frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.tokenizer import has_placeholder
from ..settings.config import TrainingConfig
from ..settings.effects import Decides
from ..weights import FileTensor
from .base import Part, Trainable, refuse_sharded
from .new_words import NewWord, TrainableEmbedding

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
    directional: Decides[bool] = False
    """Keep the vectors at the mean length of CLIP's own, and learn only their directions
    (directional textual inversion). Meant to keep more of the other words in prompts, and may cost
    likeness. The learning rates are the same."""

    def __post_init__(self) -> None:
        self.word.check()
        if self.templates not in TEMPLATES:
            raise ValueError(
                f"templates must be one of {', '.join(TEMPLATES)}, got {self.templates!r}."
            )

    @property
    def word(self) -> NewWord:
        """The new token."""
        return NewWord(self.placeholder, self.initializer, self.num_vectors)

    @property
    def trained_parts(self) -> frozenset[str]:
        return frozenset()

    @property
    def encodes_captions_at_each_step(self) -> bool:
        return True

    @property
    def trains_vectors(self) -> bool:
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
        refuse_sharded(config, "an embedding")
        if self.directional and config.optimizer.name != "AdamW":
            raise ValueError(
                f"directional is on, which takes steps of its own, but optimizer.name is "
                f"{config.optimizer.name}. Set optimizer.name to AdamW, or switch directional off."
            )
        if config.prior.teacher_weight > 0:
            raise ValueError(
                f"prior.teacher_weight is {config.prior.teacher_weight:g}, but textual inversion "
                "does not change the model, so there is nothing to preserve. Set "
                "prior.teacher_weight to 0."
            )
        if config.prior.weight > 0:
            raise ValueError(
                f"prior.weight is {config.prior.weight:g}, but textual inversion does not change "
                "the model, so class images have nothing to preserve. Set prior.weight to 0."
            )

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        self.word.add_to(model, photos, config.seed)
        return _InversionTrainable(
            TrainableEmbedding(model, self.placeholder, config, directional=self.directional)
        )

    def _require_placeholder(self, photo: Example, caption: str) -> None:
        if not has_placeholder(caption, self.placeholder):
            others = ", ".join(name for name in TEMPLATES if name != OWN_CAPTIONS)
            raise ValueError(
                f"The caption of '{photo.path.name}' lacks the placeholder {self.placeholder!r}: "
                f"{caption!r}. Add it to the caption, or choose other templates ({others})."
            )


class _InversionTrainable(Trainable):
    trains_text_encoder = True

    def __init__(self, embedding: TrainableEmbedding) -> None:
        self._embedding = embedding
        self.parts, self.files = [embedding.part], [embedding.file]

    def part_tensors(self, part: Part) -> Mapping[str, FileTensor]:
        return self._embedding.tensors()

    def after_step(self) -> None:
        self._embedding.clamp_lengths()
