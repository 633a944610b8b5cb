"""The options of methods that can train text encoders besides the U-Net."""

from __future__ import annotations

from dataclasses import dataclass

from ..families.base import ModelFamily
from ..optimization.optimizers import require_one_rate
from ..settings.config import TrainingConfig
from ..settings.effects import Decides

TEXT_ENCODERS = ("text_encoder", "text_encoder_2")
"""The parts that can be trained besides the U-Net."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderOptions:
    """Which text encoders are trained, and how. The U-Net always is."""

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

    def check_rates(self, config: TrainingConfig) -> None:
        """Raises ValueError if the optimizer cannot have the rates."""
        for part in TEXT_ENCODERS:
            require_one_rate(config, self.settings_of(part)[1], f"{part}_learning_rate")

    def require_encoders(self, model: ModelFamily) -> None:
        """Raises ValueError if the model lacks one that is to be trained."""
        if self.train_text_encoder_2 and "text_encoder_2" not in model.parts():
            raise ValueError(
                f"train_text_encoder_2 is on, but {model.name} has only one text encoder. Switch "
                "it off, and train_text_encoder on."
            )
