"""Classic DreamBooth: the U-Net's own weights, and if asked the text encoder's."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..families.base import ModelFamily
from .base import Part, Trainable, thaw


@dataclass(frozen=True, kw_only=True, slots=True)
class FullFineTune:
    """Train all weights of the U-Net."""

    train_text_encoder: bool = False
    """Train the text encoder too: the largest gain in likeness, most of all for faces, for a sixth
    more memory and a third more time."""
    text_encoder_learning_rate: float | None = None
    """The text encoder's own learning rate per step; none takes the U-Net's."""
    text_encoder_stop_step: int | None = None
    """The step after which the text encoder is left as it is; none trains it to the end."""

    def __post_init__(self) -> None:
        rate, stop = self.text_encoder_learning_rate, self.text_encoder_stop_step
        if not self.train_text_encoder and (rate is not None or stop is not None):
            raise ValueError(
                "text_encoder_learning_rate and text_encoder_stop_step need train_text_encoder. "
                "Switch it on, or leave them out."
            )
        if rate is not None and rate <= 0:
            raise ValueError(f"text_encoder_learning_rate must be above 0, got {rate}.")
        if stop is not None and stop < 1:
            raise ValueError(f"text_encoder_stop_step must be 1 or more, got {stop}.")

    def attach(self, model: ModelFamily, learning_rate: float) -> Trainable:
        return _FullTrainable(self, model, learning_rate)


class _FullTrainable(Trainable):
    def __init__(self, options: FullFineTune, model: ModelFamily, learning_rate: float) -> None:
        self._model = model
        self.trains_text_encoder = options.train_text_encoder
        modules = model.parts()
        self.parts = [Part("unet", thaw(modules["unet"]), learning_rate)]
        if options.train_text_encoder:
            self.parts.append(
                Part(
                    "text_encoder",
                    thaw(modules["text_encoder"]),
                    options.text_encoder_learning_rate or learning_rate,
                    options.text_encoder_stop_step,
                )
            )

    def part_tensors(self, part: Part) -> dict[str, Tensor]:
        return self._model.file_tensors(part.name)
