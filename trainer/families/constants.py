"""Properties of a checkpoint that cannot be read from its tensors' shapes. Its metadata may set
them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .files import CheckpointFile

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

CONSTANTS_KEY = "dreambooth.constants"
"""The metadata key of JSON such as {"vae_norm_groups": 8} that overrides `Constants`."""

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
    def read(cls, source: CheckpointFile) -> Self:
        """The defaults, overridden by the file's metadata. Raises ValueError if the metadata has
        unknown names or values out of range."""
        overrides: dict[str, Any] = {}
        if prediction := source.metadata.get("modelspec.prediction_type"):
            if prediction not in ("epsilon", "v"):
                raise _wrong_metadata(
                    source, "modelspec.prediction_type", prediction, "epsilon or v"
                )
            overrides["is_v_prediction"] = prediction == "v"
        text = source.metadata.get(CONSTANTS_KEY, "{}")
        try:
            constants = json.loads(text)
        except (ValueError, RecursionError):
            constants = None
        if not isinstance(constants, dict):
            raise _wrong_metadata(source, CONSTANTS_KEY, text, "a JSON object")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in constants.items():
            if name not in defaults:
                names = f"one of {', '.join(defaults)}"
                raise _wrong_metadata(source, CONSTANTS_KEY, name, names)
            overrides[name] = _checked(source, name, value, defaults[name])
        return cls(**overrides)


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
        f"The metadata of '{source.path.name}' gives '{value}' for {key}, which must be {allowed}. "
        "Correct the metadata, or choose another checkpoint."
    )
