"""What no tensor's shape tells of a checkpoint, and its metadata may."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .files import CheckpointFile

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

CONSTANTS_KEY = "dreambooth.constants"
"""In a file's metadata: JSON such as {"vae_norm_groups": 8}, to be read instead of `Constants`."""

MAX_CONSTANT = 1_000_000
"""Far above any that makes sense, and far below where numbers overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Constants:
    """Stable Diffusion 1.x's."""

    unet_heads: int = 8
    unet_norm_groups: int = 32
    vae_norm_groups: int = 32
    text_heads: int = 12
    latent_scale: float = 0.18215
    """The VAE's latents times this have a deviation of about 1."""
    beta_start: float = 0.00085
    beta_end: float = 0.012
    is_v_prediction: bool = False
    resolution: int = 512
    """Pixels, each side."""

    @classmethod
    def read(cls, source: CheckpointFile) -> Self:
        """Stable Diffusion's own, unless the file's metadata says otherwise."""
        given: dict[str, Any] = {}
        if prediction := source.metadata.get("modelspec.prediction_type"):
            if prediction not in ("epsilon", "v"):
                raise _wrong_metadata(
                    source, "modelspec.prediction_type", prediction, "epsilon or v"
                )
            given["is_v_prediction"] = prediction == "v"
        text = source.metadata.get(CONSTANTS_KEY, "{}")
        try:
            own = json.loads(text)
        except (ValueError, RecursionError):
            own = None
        if not isinstance(own, dict):
            raise _wrong_metadata(source, CONSTANTS_KEY, text, "a JSON object")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        for name, value in own.items():
            if name not in defaults:
                raise _wrong_metadata(source, CONSTANTS_KEY, name, ", ".join(defaults))
            given[name] = _checked(source, name, value, defaults[name])
        return cls(**given)


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
        f"The metadata of '{source.path.name}' gives '{value}' for {key}, and {allowed} can stand "
        "there. Correct the metadata, or choose another checkpoint."
    )
