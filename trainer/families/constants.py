"""Properties of a checkpoint that cannot be read from its tensors' shapes. Its metadata may set
them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..settings.config import PredictionType
from . import prediction
from .files import CheckpointFile

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

CONSTANTS_KEY = "dreambooth.constants"
"""The metadata key of JSON such as {"vae_norm_groups": 8} that overrides `Constants`."""

PREDICTION = "is_v_prediction"

MAX_CONSTANT = 1_000_000
"""Far above any reasonable value, and far below values that overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """The defaults are Stable Diffusion 1.x's."""

    unet_heads: int = 8
    unet_norm_groups: int = 32
    vae_norm_groups: int = 32
    text_heads: int = 12
    latent_scale: float = 0.18215
    """The VAE's latents times this have a standard deviation of about 1."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    is_v_prediction: bool = False
    resolution: int = 512
    """Width and height that the model was trained at, in pixels."""

    @classmethod
    def read(cls, source: CheckpointFile, prediction_type: PredictionType = "auto") -> Self:
        """The defaults, overridden by the file's metadata and by the setting `prediction_type`.
        Raises ValueError if the metadata has unknown names or values out of range."""
        overrides: dict[str, Any] = {}
        constants = _stored(source)
        if prediction_type != "auto" or PREDICTION not in constants:
            is_v_prediction = prediction.is_v_prediction(source, prediction_type)
            constants.pop(PREDICTION, None)
            if is_v_prediction is False and prediction.TENSOR in source.shapes:
                source.leave_out([prediction.TENSOR])  # a trained file would say both
            if is_v_prediction is not None:
                overrides[PREDICTION] = is_v_prediction
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in constants.items():
            if name not in defaults:
                names = f"one of {', '.join(defaults)}"
                raise _wrong_metadata(source, CONSTANTS_KEY, name, names)
            overrides[name] = _checked(source, name, value, defaults[name])
        return cls(**overrides)


def _stored(source: CheckpointFile) -> dict[str, Any]:
    text = source.metadata.get(CONSTANTS_KEY, "{}")
    try:
        constants = json.loads(text)
    except (ValueError, RecursionError):
        constants = None
    if not isinstance(constants, dict):
        raise _wrong_metadata(source, CONSTANTS_KEY, text, "a JSON object")
    return constants


def without_prediction(metadata: Mapping[str, str]) -> dict[str, str]:
    """A usable file's metadata without all that says what the model predicts."""
    kept = {key: text for key, text in metadata.items() if key not in prediction.METADATA_KEYS}
    constants = json.loads(kept.get(CONSTANTS_KEY, "{}"))
    if PREDICTION in constants:
        del constants[PREDICTION]
        kept[CONSTANTS_KEY] = json.dumps(constants)
    return kept


def _checked(source: CheckpointFile, name: str, value: Any, default: Any) -> Any:
    limits = f"above 0, up to {MAX_CONSTANT}"
    expected = {int: f"a whole number {limits}", float: f"a number {limits}", bool: "true or false"}
    kind = type(default)
    accepted = (int, float) if kind is float else (kind,)
    if type(value) not in accepted or not (kind is bool or 0 < value <= MAX_CONSTANT):
        key = f"{name} in {CONSTANTS_KEY}"
        raise _wrong_metadata(source, key, json.dumps(value), expected[kind])
    return value


def _wrong_metadata(source: CheckpointFile, key: str, value: str, allowed: str) -> ValueError:
    return ValueError(
        f"The metadata of '{source.name}' gives '{value}' for {key}, which must be {allowed}. "
        "Correct the metadata, or choose another checkpoint."
    )
