"""Properties of a checkpoint that cannot be read from its tensors' shapes. Its metadata may set
them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..settings.config import PredictionType
from . import prediction
from .files import CheckpointFile

CONSTANTS_KEY = "dreambooth.constants"
"""The metadata key of JSON such as {"vae_norm_groups": 8} that overrides `Constants`."""

PREDICTION, ZERO_SNR = "is_v_prediction", "has_zero_terminal_snr"
"""The names of the constants that say what a model predicts."""

MAX_CONSTANT = 1_000_000
"""Far above any reasonable value, and far below values that overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """The defaults are Stable Diffusion 1.x's."""

    unet_heads: int = 8
    """Attention heads of each level. 0: one for each 64 channels."""
    unet_norm_groups: int = 32
    vae_norm_groups: int = 32
    text_heads: int = 12
    """Attention heads of the text encoders. 0: one for each 64 channels."""
    text_norm: bool = True
    """Whether the final layer norm follows the layer of the text encoders that is used."""
    latent_scale: float = 0.18215
    """The VAE's latents times this have a standard deviation of about 1."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    is_v_prediction: bool = False
    has_zero_terminal_snr: bool = False
    """Whether nothing but noise is left at the last timestep (arXiv 2305.08891)."""
    resolution: int = 512
    """Width and height that the model was trained at, in pixels."""

    @classmethod
    def read(
        cls,
        source: CheckpointFile,
        prediction_type: PredictionType = "auto",
        usual: Constants | None = None,
    ) -> Constants:
        """What is usual for the family, overridden by the file's metadata and by the setting
        `prediction_type`. Raises ValueError if the metadata has unknown names or values out of
        range."""
        usual, overrides = usual or cls(), {}
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in _stored(source).items():
            if name not in defaults:
                names = f"one of {', '.join(defaults)}"
                raise _wrong_metadata(source, CONSTANTS_KEY, name, names)
            overrides[name] = _checked(source, name, value, defaults[name])
        if prediction_type != "auto" or PREDICTION not in overrides:
            overrides |= _prediction(source, prediction_type, usual)
        return dataclasses.replace(usual, **overrides)


def _prediction(
    source: CheckpointFile, prediction_type: PredictionType, usual: Constants
) -> dict[str, bool]:
    found = prediction.is_v_prediction(source, prediction_type)
    is_v = usual.is_v_prediction if found is None else found
    zero_snr = prediction.has_zero_terminal_snr(source, prediction_type, is_v=is_v)
    return {PREDICTION: is_v, ZERO_SNR: zero_snr}


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
    if constants.keys() & {PREDICTION, ZERO_SNR}:
        others = {n: v for n, v in constants.items() if n not in (PREDICTION, ZERO_SNR)}
        kept[CONSTANTS_KEY] = json.dumps(others)
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
