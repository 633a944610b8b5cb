"""What an image of the toy world shows, and how an individual looks."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]
NEAR_BLACK: Color = (30, 28, 34)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that an image shows. Drawing the same scene twice produces the same pixels."""

    shape: str
    background: str
    body: Color
    pattern: str = "plain"
    accent: Color = NEAR_BLACK
    detail: Color | None = None
    """Colour of the handle, roof, trunk or wheels; None: the shape's default."""
    color: str | None = None
    """The name of the body's colour, if it has one."""
    name: str | None = None
    """A made-up word for this look (see `random_look`), used instead of colour and pattern."""
    scale: float = 0.9
    angle: float = 0.0
    """Degrees, anticlockwise."""
    shift: float = 0.0
    """Canvas pixels right of the centre."""
    ground: float = 104.0
    """The canvas row on which the object stands."""
    flipped: bool = False
    texture: int = 0
    """Seed of the background's stars, tufts and flakes."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an individual looks, independent of shape and place."""

    body: Color
    pattern: str
    accent: Color
    detail: Color | None
