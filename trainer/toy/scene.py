"""What one picture of the toy world shows, and how an individual looks."""

from __future__ import annotations

from dataclasses import dataclass

Color = tuple[int, int, int]
NEAR_BLACK: Color = (30, 28, 34)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything one picture shows; drawing the same scene twice gives the same pixels."""

    shape: str
    background: str
    body: Color
    pattern: str = "plain"
    accent: Color = NEAR_BLACK
    detail: Color | None = None
    """Colour of the handle, roof, trunk or wheels; None gives the shape's own."""
    color: str | None = None
    """The body colour's word, where it has one."""
    name: str | None = None
    """A made-up word bound to this look (see `random_look`), in place of colour and pattern."""
    scale: float = 0.9
    angle: float = 0.0
    """Degrees, anticlockwise."""
    shift: float = 0.0
    """Canvas pixels to the right of the centre."""
    ground: float = 104.0
    """Canvas row that the object stands on."""
    flipped: bool = False
    texture: int = 0
    """Seed of the background's stars, tufts and flakes."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """How an individual looks, whatever its shape and wherever it stands."""

    body: Color
    pattern: str
    accent: Color
    detail: Color | None
