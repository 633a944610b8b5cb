"""Classic DreamBooth: trains all weights of the U-Net, and optionally those of the text encoder and
of an embedding that textual inversion learned before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..data.examples import Example
from ..families.base import ModelFamily
from ..settings.config import TrainingConfig
from ..settings.effects import Decides
from ..weights import FileTensor
from .base import OutputFile, Part, Trainable, refuse_sharded, thaw
from .new_words import TrainableEmbedding, require_embedding, require_placeholder_in_use
from .text_encoders import TextEncoderOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class FullFineTune(TextEncoderOptions):
    """Train all weights of the U-Net."""

    train_embedding: Decides[bool] = False
    """Also train the vectors of an embedding from textual inversion further, together with the
    model, and save them as a new embedding. The earlier embedding does not fit the new checkpoint.
    Off: the vectors do not change."""

    @property
    def trained_parts(self) -> frozenset[str]:
        return frozenset(["unet", *self.trained_text_encoders])

    @property
    def encodes_captions_at_each_step(self) -> bool:
        return bool(self.trained_text_encoders) or self.trains_vectors

    @property
    def trains_vectors(self) -> bool:
        return self.train_embedding

    def caption(self, photos: Sequence[Example], prompt: str) -> list[Example]:
        return list(photos)

    def check(self, config: TrainingConfig) -> None:
        self.check_rates(config)
        if config.frozen_weights != "precision":
            raise ValueError(
                f"frozen_weights is {config.frozen_weights}, but the model itself is trained. Set "
                "frozen_weights to precision, or train a LoRA."
            )
        if self.train_embedding:
            require_embedding(config)
            refuse_sharded(config, "an embedding")

    def attach(
        self, model: ModelFamily, config: TrainingConfig, photos: Sequence[Example]
    ) -> Trainable:
        for placeholder in model.learned_vectors:
            require_placeholder_in_use(placeholder, photos)
        self.require_encoders(model)
        return _FullTrainable(self, model, config)


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

    def initial_values(self, part: Part) -> Sequence[Tensor | None]:
        if part.name in self._embeddings:
            return super().initial_values(part)
        return self._model.initial_values(part.name)

    def after_step(self) -> None:
        for embedding in self._embeddings.values():
            embedding.clamp_lengths()
