"""Classic DreamBooth: trains all weights of the U-Net, and optionally those of the text encoder and
of an embedding that textual inversion learned before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..data.examples import Example
from ..families.base import ModelFamily
from ..families.tokenizer import has_placeholder
from ..optimization.optimizers import require_one_rate
from ..settings.config import TrainingConfig
from ..settings.effects import Decides
from ..weights import FileTensor
from .base import OutputFile, Part, Trainable, thaw
from .textual_inversion import TrainableEmbedding

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""The parts that can be trained besides the U-Net."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FullFineTune:
    """Train all weights of the U-Net."""

    train_text_encoder: Decides[bool] = False
    """Train the text encoder too: much better likeness, most of all for faces, for a sixth more
    memory and a third more time. Of Stable Diffusion XL, it is the first and smaller one of two."""
    text_encoder_learning_rate: Decides[float | None] = None
    """Learning rate of the text encoder per step, such as half of the U-Net's. Only if the text
    encoder is trained, and not with Prodigy, which has one rate for all. Not set: the same as the
    U-Net's."""
    text_encoder_stop_step: Decides[int | None] = None
    """Step after which the text encoder is trained no further, such as half of all steps. Only if
    the text encoder is trained. Not set: it is trained to the end."""
    train_embedding: Decides[bool] = False
    """Also train the vectors of an embedding from textual inversion further, together with the
    model, and save them as a new embedding. The earlier embedding does not fit the new checkpoint.
    Off: the vectors do not change."""
    train_text_encoder_2: Decides[bool] = False
    """Train the second text encoder of Stable Diffusion XL, which is large: it takes as much memory
    as a U-Net of Stable Diffusion 1. Models of other kinds have none."""
    text_encoder_2_learning_rate: Decides[float | None] = None
    """Learning rate of the second text encoder per step. Only if it is trained, and not with
    Prodigy. Not set: the same as the U-Net's."""
    text_encoder_2_stop_step: Decides[int | None] = None
    """Step after which the second text encoder is trained no further. Only if it is trained. Not
    set: it is trained to the end."""

    def __post_init__(self) -> None:
        for part in TEXT_ENCODERS:
            is_trained, rate, stop = self.settings_of(part)
            if not is_trained and (rate is not None or stop is not None):
                raise ValueError(
                    f"{part}_learning_rate and {part}_stop_step need train_{part}. Switch it on, "
                    "or leave them out."
                )
            if rate is not None and rate <= 0:
                raise ValueError(f"{part}_learning_rate must be above 0, got {rate}.")
            if stop is not None and stop < 1:
                raise ValueError(f"{part}_stop_step must be 1 or more, got {stop}.")

    def settings_of(self, part: str) -> tuple[bool, float | None, int | None]:
        """Whether a text encoder is trained, its learning rate and its last step."""
        names = (f"train_{part}", f"{part}_learning_rate", f"{part}_stop_step")
        is_trained, rate, stop = (getattr(self, name) for name in names)
        return is_trained, rate, stop

    @property
    def trained_text_encoders(self) -> list[str]:
        """The names of those parts that are trained."""
        return [part for part in TEXT_ENCODERS if self.settings_of(part)[0]]

    @property
    def trained_parts(self) -> frozenset[str]:
        return frozenset(["unet", *self.trained_text_encoders])

    @property
    def encodes_captions_at_each_step(self) -> bool:
        return bool(self.trained_text_encoders) or self.train_embedding

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        return list(photos)

    def check(self, config: TrainingConfig) -> None:
        for part in TEXT_ENCODERS:
            require_one_rate(config, self.settings_of(part)[1], f"{part}_learning_rate")
        if self.train_embedding and config.embedding is None:
            raise ValueError(
                "train_embedding is on, but the run has no embedding. Set embedding to the file of "
                "a textual inversion, or switch train_embedding off."
            )

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        for placeholder in model.learned_vectors:
            _require_placeholder_in_use(placeholder, photos)
        if self.train_text_encoder_2 and "text_encoder_2" not in model.parts():
            raise ValueError(
                f"train_text_encoder_2 is on, but {model.name} has only one text encoder. Switch "
                "it off, and train_text_encoder on."
            )
        return _FullTrainable(self, model, config)


def _require_placeholder_in_use(placeholder: str, photos: Sequence[Example]) -> None:
    captions = [caption for photo in photos for caption in photo.captions]
    if not any(has_placeholder(caption, placeholder) for caption in captions):
        raise ValueError(
            f"The embedding's placeholder {placeholder!r} appears in no caption, so the embedding "
            f"would have no effect. Add it to dataset.prompt, for example 'a photo of "
            f"{placeholder}' (now {captions[0]!r})."
        )


class _FullTrainable(Trainable):
    def __init__(self, options: FullFineTune, model: ModelFamily, config: TrainingConfig) -> None:
        self._model = model
        self.trains_text_encoder = options.encodes_captions_at_each_step
        modules, learning_rate = model.parts(), config.optimizer.learning_rate
        self.parts = [Part("unet", thaw(modules["unet"]), learning_rate)]
        for part in options.trained_text_encoders:
            _, rate, stop = options.settings_of(part)
            self.parts.append(Part(part, thaw(modules[part]), rate or learning_rate, stop))
        self.files = [
            OutputFile(
                kind="checkpoint",
                original=model.source,
                parts=list(self.parts),
                output=config.output.in_subfolder(),
            )
        ]
        self._embeddings: dict[str, TrainableEmbedding] = {}
        if options.train_embedding:
            for placeholder in model.learned_vectors:
                embedding = TrainableEmbedding(model, placeholder, config, name_suffix="-embedding")
                self._embeddings[embedding.part.name] = embedding
                self.parts.append(embedding.part)
                self.files.append(embedding.file)

    def part_tensors(self, part: Part) -> Mapping[str, FileTensor]:
        if part.name in self._embeddings:
            return self._embeddings[part.name].tensors()
        return self._model.file_tensors(part.name)

    def after_step(self) -> None:
        for embedding in self._embeddings.values():
            embedding.clamp_lengths()
