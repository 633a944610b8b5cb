"""Draws scenes of the toy world with PIL. The scenes themselves come from `world.py`."""

from __future__ import annotations

import random
from collections.abc import Callable

from PIL import Image, ImageChops, ImageDraw

from .scene import NEAR_BLACK, Color, Scene

Box = tuple[float, float, float, float]

SIZE = 64
"""Width and height of an image, in pixels."""
CANVAS = 2 * SIZE
"""Images are drawn at this size and scaled down, which smooths their edges."""


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `SIZE` x `SIZE` pixels."""
    canvas = _BACKGROUNDS[scene.background](random.Random(scene.texture))
    layer = _object_layer(scene)
    canvas.paste(NEAR_BLACK, (0, 0), _shadow_mask(scene))
    canvas.paste(layer, (0, 0), layer)
    return canvas.resize((SIZE, SIZE), Image.Resampling.BOX)


def mask(scene: Scene) -> Image.Image:
    """Where the object is in that image, in white, without its shadow: mode L."""
    return _object_layer(scene).getchannel("A").resize((SIZE, SIZE), Image.Resampling.BOX)


def jitter(color: Color, rng: random.Random, amount: int) -> Color:
    red, green, blue = (max(0, min(255, c + rng.randint(-amount, amount))) for c in color)
    return red, green, blue


# ------------------------------------------------------------------ objects
# Shapes are drawn in object units: x from -50 to 50 and y from -100 (top) to 0 (ground). Each shape
# marks the region that gets the body's colour and pattern, and draws its other parts itself.

Pen = ImageDraw.ImageDraw


class _Stencil:
    """Canvases for one object: the mask of its patterned body, and the parts under and over it."""

    def __init__(self) -> None:
        self.body = Image.new("L", (CANVAS, CANVAS))
        self.under = Image.new("RGBA", (CANVAS, CANVAS))
        self.over = Image.new("RGBA", (CANVAS, CANVAS))

    def pens(self) -> tuple[Pen, Pen, Pen]:
        return ImageDraw.Draw(self.body), ImageDraw.Draw(self.under), ImageDraw.Draw(self.over)


def _at(*points: tuple[float, float]) -> list[tuple[float, float]]:
    """Convert object units to canvas pixels: x = 0 is the canvas's centre, y = 0 is row 110."""
    return [(CANVAS / 2 + x, 110 + y) for x, y in points]


def _oval(left: float, top: float, right: float, bottom: float) -> Box:
    (x0, y0), (x1, y1) = _at((left, top), (right, bottom))
    return x0, y0, x1, y1


def _dark(color: Color, factor: float = 0.45) -> Color:
    red, green, blue = (round(factor * c) for c in color)
    return red, green, blue


def _cup(stencil: _Stencil, scene: Scene) -> None:
    body, under, over = stencil.pens()
    handle = scene.detail or scene.body
    under.ellipse(_oval(12, -62, 52, -16), outline=_dark(handle), width=15)
    under.ellipse(_oval(14, -60, 50, -18), outline=handle, width=10)
    body.polygon(_at((-34, -74), (34, -74), (26, -5), (-26, -5)), fill=255)
    body.ellipse(_oval(-26, -12, 26, 0), fill=255)
    over.ellipse(
        _oval(-34, -82, 34, -66), fill=_dark(scene.body, 0.7), outline=_dark(scene.body), width=3
    )


def _cat(stencil: _Stencil, scene: Scene) -> None:
    body, under, over = stencil.pens()
    tail = scene.detail or scene.body
    under.arc(_oval(6, -62, 52, 0), 270, 90, fill=_dark(tail), width=13)
    under.arc(_oval(8, -60, 50, -2), 270, 90, fill=tail, width=8)
    body.ellipse(_oval(-27, -52, 27, 0), fill=255)
    body.ellipse(_oval(-26, -88, 26, -42), fill=255)
    body.polygon(_at((-25, -68), (-24, -100), (-4, -84)), fill=255)
    body.polygon(_at((25, -68), (24, -100), (4, -84)), fill=255)
    for x in (-11, 11):
        over.ellipse(
            _oval(x - 6, -74, x + 6, -62), fill=(250, 250, 235), outline=NEAR_BLACK, width=1
        )
        over.ellipse(_oval(x - 2.5, -72, x + 2.5, -63), fill=NEAR_BLACK)
    over.polygon(_at((-4, -59), (4, -59), (0, -54)), fill=(70, 30, 40))


def _house(stencil: _Stencil, scene: Scene) -> None:
    body, _, over = stencil.pens()
    roof = scene.detail or (120, 66, 48)
    body.rectangle(_oval(-36, -58, 36, 0), fill=255)
    over.polygon(_at((-46, -54), (0, -98), (46, -54)), fill=roof, outline=_dark(roof), width=3)
    over.rectangle(_oval(-8, -30, 10, 0), fill=(92, 58, 36), outline=NEAR_BLACK, width=2)
    for left in (-30, 16):
        over.rectangle(
            _oval(left, -48, left + 14, -34), fill=(190, 226, 246), outline=NEAR_BLACK, width=2
        )


def _car(stencil: _Stencil, scene: Scene) -> None:
    body, _, over = stencil.pens()
    wheel = scene.detail or (150, 150, 156)
    body.rounded_rectangle(_oval(-52, -40, 52, -12), radius=9, fill=255)
    body.polygon(_at((-32, -38), (-20, -64), (20, -64), (36, -38)), fill=255)
    over.polygon(_at((-24, -40), (-15, -58), (-2, -58), (-2, -40)), fill=(196, 228, 246))
    over.polygon(_at((4, -40), (4, -58), (16, -58), (26, -40)), fill=(196, 228, 246))
    for x in (-28, 28):
        over.ellipse(_oval(x - 13, -26, x + 13, 0), fill=NEAR_BLACK)
        over.ellipse(_oval(x - 6, -19, x + 6, -7), fill=wheel)


def _tree(stencil: _Stencil, scene: Scene) -> None:
    body, under, _ = stencil.pens()
    trunk = scene.detail or (112, 74, 44)
    under.rectangle(_oval(-8, -44, 8, 0), fill=trunk, outline=_dark(trunk), width=2)
    for box in ((-40, -72, 4, -30), (-4, -72, 40, -30), (-26, -102, 26, -48)):
        body.ellipse(_oval(*box), fill=255)


def _ball(stencil: _Stencil, scene: Scene) -> None:
    body, _, over = stencil.pens()
    body.ellipse(_oval(-36, -72, 36, 0), fill=255)
    over.ellipse(_oval(-20, -62, -6, -50), fill=(255, 255, 255, 190))
    if scene.detail is not None:
        over.ellipse(
            _oval(2, -32, 16, -18), fill=scene.detail, outline=_dark(scene.detail), width=2
        )


SHAPES: dict[str, Callable[[_Stencil, Scene], None]] = {
    "cup": _cup,
    "cat": _cat,
    "house": _house,
    "car": _car,
    "tree": _tree,
    "ball": _ball,
}


def _object_layer(scene: Scene) -> Image.Image:
    """The object alone on a transparent canvas, with the pose of the scene."""
    stencil = _Stencil()
    SHAPES[scene.shape](stencil, scene)
    layer = stencil.under
    layer.paste(_patterned(scene, stencil.body), (0, 0), stencil.body)
    outline = ImageChops.subtract(stencil.body, _eroded(stencil.body))
    layer.paste(_dark(scene.body), (0, 0), outline)
    layer.alpha_composite(stencil.over)
    if scene.flipped:
        layer = layer.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    layer = layer.rotate(scene.angle, Image.Resampling.BILINEAR, center=(CANVAS / 2, 110))
    side = round(CANVAS * scene.scale)
    placed = Image.new("RGBA", (CANVAS, CANVAS))
    corner = (CANVAS / 2 + scene.shift - side / 2, scene.ground - 110 * scene.scale)
    left, top = map(round, corner)
    placed.paste(layer.resize((side, side), Image.Resampling.BILINEAR), (left, top))
    return placed


def _patterned(scene: Scene, body: Image.Image) -> Image.Image:
    """A canvas in the body's colour, with the pattern fitted to the body's bounding box."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), scene.body)
    pen = ImageDraw.Draw(canvas)
    left, top, right, bottom = body.getbbox() or (0, 0, CANVAS, CANVAS)
    if scene.pattern == "striped":
        for x in range(left + 6, right, 18):
            pen.rectangle((x, top, x + 8, bottom), fill=scene.accent)
    elif scene.pattern == "spotted":
        for row, y in enumerate(range(top + 8, bottom + 8, 18)):
            for x in range(left + (row % 2) * 10, right + 10, 20):
                pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=scene.accent)
    elif scene.pattern == "band":
        height = bottom - top
        pen.rectangle((left, top + 0.36 * height, right, top + 0.68 * height), fill=scene.accent)
    return canvas


def _eroded(mask: Image.Image) -> Image.Image:
    """The mask without its outermost three canvas pixels."""
    shifts = [(3, 0), (-3, 0), (0, 3), (0, -3), (2, 2), (-2, -2), (2, -2), (-2, 2)]
    eroded = mask
    for x, y in shifts:
        eroded = ImageChops.darker(eroded, ImageChops.offset(mask, x, y))
    return eroded


def _shadow_mask(scene: Scene) -> Image.Image:
    mask = Image.new("L", (CANVAS, CANVAS))
    middle, half = CANVAS / 2 + scene.shift, 42 * scene.scale
    ImageDraw.Draw(mask).ellipse(
        (middle - half, scene.ground - 5, middle + half, scene.ground + 6), fill=90
    )
    return mask


# -------------------------------------------------------------- backgrounds


def _ground(sky: Color, ground: Color, rng: random.Random) -> tuple[Image.Image, Pen, int]:
    canvas = Image.new("RGB", (CANVAS, CANVAS), jitter(sky, rng, 8))
    pen, horizon = ImageDraw.Draw(canvas), rng.randint(68, 84)
    pen.rectangle((0, horizon, CANVAS, CANVAS), fill=jitter(ground, rng, 8))
    return canvas, pen, horizon


def _disc(pen: Pen, x: float, y: float, radius: float, fill: Color) -> None:
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)


def _beach(rng: random.Random) -> Image.Image:
    canvas, pen, horizon = _ground((150, 214, 246), (238, 214, 150), rng)
    pen.rectangle((0, horizon - rng.randint(14, 22), CANVAS, horizon), fill=(40, 132, 196))
    if rng.random() < 0.6:
        _disc(pen, rng.randint(10, 118), rng.randint(10, 26), 9, (255, 236, 120))
    return canvas


def _night(rng: random.Random) -> Image.Image:
    canvas, pen, horizon = _ground((16, 20, 54), (30, 34, 46), rng)
    for _ in range(rng.randint(12, 22)):
        _disc(pen, rng.randint(0, CANVAS), rng.randint(0, horizon - 6), 1.3, (240, 240, 220))
    if rng.random() < 0.7:
        _disc(pen, rng.randint(12, 116), rng.randint(12, 28), 9, (246, 240, 200))
    return canvas


def _grass(rng: random.Random) -> Image.Image:
    canvas, pen, horizon = _ground((176, 222, 250), (92, 176, 66), rng)
    for _ in range(36):
        x, y = rng.randint(0, CANVAS), rng.randint(horizon + 4, CANVAS)
        pen.line((x, y, x + rng.randint(-2, 2), y - 7), fill=(54, 128, 40), width=2)
    if rng.random() < 0.5:
        x, y = rng.randint(16, 112), rng.randint(12, 28)
        for offset in (-9, 0, 9):
            _disc(pen, x + offset, y, 8, (250, 250, 252))
    return canvas


def _snow(rng: random.Random) -> Image.Image:
    canvas, pen, horizon = _ground((178, 190, 206), (244, 248, 252), rng)
    for _ in range(26):
        _disc(pen, rng.randint(0, CANVAS), rng.randint(0, horizon), 2, (252, 252, 255))
    return canvas


def _room(rng: random.Random) -> Image.Image:
    canvas, pen, horizon = _ground((226, 204, 176), (142, 96, 62), rng)
    for x in range(rng.randint(0, 18), CANVAS, 22):
        pen.line((x, horizon, x, CANVAS), fill=(112, 74, 46), width=2)
    if rng.random() < 0.7:
        left, top = rng.randint(4, 92), rng.randint(6, 16)
        pen.rectangle(
            (left, top, left + 30, top + 34), fill=(186, 224, 246), outline=(96, 66, 44), width=3
        )
        pen.line((left + 15, top, left + 15, top + 34), fill=(96, 66, 44), width=2)
    return canvas


_BACKGROUNDS: dict[str, Callable[[random.Random], Image.Image]] = {
    "beach": _beach,
    "night": _night,
    "grass": _grass,
    "snow": _snow,
    "room": _room,
}
