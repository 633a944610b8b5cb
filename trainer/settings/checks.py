"""Checks of settings. Each raises ValueError if the setting is invalid."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ..storage import names

MANY_IMAGES = 1_000_000


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)


def at_least(name: str, value: float, minimum: float) -> None:
    require(value >= minimum, f"{name} must be {minimum} or more, got {value}.")
    is_finite(name, value)
    require(value < 2**63, f"{name} must be below 2^63, got {value}.")


def is_number_of_images(name: str, value: int, minimum: int) -> None:
    """More than `MANY_IMAGES` would fill the memory before the first one is made."""
    at_least(name, value, minimum)
    require(value <= MANY_IMAGES, f"{name} must be {MANY_IMAGES} or less, got {value}.")


def is_finite(name: str, value: float) -> None:
    require(value < math.inf, f"{name} must be a finite number, got {value}.")


def check_strengths(loras: Sequence[object], strengths: Sequence[float]) -> None:
    """One strength for each LoRA, or none."""
    require(len(strengths) in (0, len(loras)), f"lora_strengths has {len(strengths)} numbers, but "
            f"loras has {len(loras)} files. Write one number for each file, or none.")  # fmt: skip
    for strength in strengths:
        require(abs(strength) < math.inf, f"lora_strengths must be finite numbers, got {strength}.")


def is_seed(name: str, value: int) -> None:
    at_least(name, value, 0)


def is_text(name: str, value: str) -> None:
    require(names.is_text(value), f"{name} is not valid Unicode: {value!r}. Write it in UTF-8, or "
            "rename it.")  # fmt: skip


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    words = ", ".join(map(str, allowed))
    require(value in allowed, f"{name} must be one of {words}, got {value!r}.")
