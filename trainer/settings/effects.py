"""How each setting affects a run's result, declared by the type of its field, such as
`steps: Decides[int]`. On a field with nested settings it applies to all of them."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Annotated, Any, TypeVar, get_type_hints

T = TypeVar("T")


class Effect(Enum):
    """What about a setting decides the result. Runs with different results are different runs."""

    VALUE = "its value"
    CONTENT = "the content of the files it names"
    PHOTOS_PER_STEP = "the number of photos per step, which it contributes to"
    ROUNDING = "nothing: it changes the result only by rounding"
    NONE = "nothing: it does not change the result"


Decides = Annotated[T, Effect.VALUE]
ByContent = Annotated[T, Effect.CONTENT]
PhotosPerStep = Annotated[T, Effect.PHOTOS_PER_STEP]
OnlyRounding = Annotated[T, Effect.ROUNDING]
NoEffect = Annotated[T, Effect.NONE]


def effects(settings: type, prefix: str = "", above: Effect | None = None) -> dict[str, Effect]:
    """Return the effect of every setting of a dataclass by its dotted name, with `prefix` in front.
    `above` applies to all its fields; None: each field declares its own. Raises TypeError for a
    field that declares none."""
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
                f"{settings.__name__}.{field.name} does not declare whether it affects a run's "
                "result. Use a type from trainer/settings/effects.py, such as Decides[int]."
            )
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a setting; `dataclasses.MISSING` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _effect(hint: Any) -> Effect | None:
    marks = getattr(hint, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, Effect)), None)
