"""What each setting has to do with a run's result, written as the type of its field:
`steps: Decides[int]`. A type on a field of nested settings covers all of them."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")


class Effect(Enum):
    """By what a setting tells one run from another."""

    VALUE = "by its value"
    CONTENT = "by the content of the files it names"
    PHOTOS_PER_STEP = "by its share in the number of photos per step"
    ROUNDING = "not at all: it changes the result by rounding alone"
    NONE = "not at all: it leaves the result as it is"


Decides = Annotated[T, Effect.VALUE]
ByContent = Annotated[T, Effect.CONTENT]
PhotosPerStep = Annotated[T, Effect.PHOTOS_PER_STEP]
OnlyRounding = Annotated[T, Effect.ROUNDING]
NoEffect = Annotated[T, Effect.NONE]


def effects(settings: type, prefix: str = "", above: Effect | None = None) -> dict[str, Effect]:
    """The effect of every setting of a dataclass by its dotted name after `prefix`; `above` is that
    of the dataclass itself, if it has one. TypeError for a field whose type names no effect."""
    found = {}
    hints = get_type_hints(settings, include_extras=True)
    for field in dataclasses.fields(settings):
        hint, name = hints[field.name], prefix + field.name
        effect = above or _effect(hint)
        kind = getattr(hint, "__origin__", hint)
        if dataclasses.is_dataclass(kind):
            found.update(effects(kind, f"{name}.", effect))  # type: ignore[arg-type]
        elif effect:
            found[name] = effect
        else:
            raise TypeError(
                f"{settings.__name__}.{field.name} does not say whether it decides a run's result. "
                "Write its type as one of trainer/settings/effects.py, such as Decides[int]."
            )
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A setting's default; `dataclasses.MISSING` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _effect(hint: Any) -> Effect | None:
    marks = getattr(hint, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Effect)), None)
