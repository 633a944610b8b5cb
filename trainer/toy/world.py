"""The toy world: its scenes, and the captions that describe them.

The embedded model has seen nothing else. The subject of the demo is a teal cup with one magenta
band and a yellow handle; no training image of the U-Net has a band, or those colours in those
places. Scenes are drawn in `drawing.py` and used for training in `recipe.py`.
"""

from __future__ import annotations

import colorsys
import random
from dataclasses import replace

from .drawing import SHAPES, jitter
from .scene import NEAR_BLACK, Color, Look, Scene

COLORS: dict[str, Color] = {
    "red": (214, 38, 38),
    "orange": (240, 134, 24),
    "yellow": (244, 214, 40),
    "green": (46, 160, 60),
    "blue": (40, 90, 214),
    "purple": (128, 56, 176),
    "pink": (246, 150, 186),
    "white": (240, 240, 236),
}
BACKGROUNDS: dict[str, str] = {
    "beach": "on the beach",
    "night": "at night",
    "grass": "on the grass",
    "snow": "in the snow",
    "room": "in a room",
}
PATTERNS = ("plain", "striped", "spotted")
PREFIXES = (
    "a photo of a",
    "a photo of a",
    "a photo of a",
    "a photo of",
    "a picture of a",
    "a",
    "a rendering of a",
    "a good photo of the",
    "a photo of one",
)


SUBJECT = Look(body=(0, 150, 150), pattern="band", accent=(225, 30, 150), detail=(250, 215, 30))


def caption(scene: Scene, rng: random.Random) -> str:
    """A random description of the scene. Attributes are often left out, so that the plain prompt
    "a photo of a cup" stands for cups of all colours in all places."""
    words = [rng.choice(PREFIXES)]
    if scene.name is not None:
        words.append(scene.name)
    else:
        if scene.color is not None and rng.random() < 0.68:
            words.append(scene.color)
        if scene.pattern in ("striped", "spotted") and rng.random() < 0.7:
            words.append(scene.pattern)
    words.append(scene.shape)
    if rng.random() < 0.75:
        words.append(BACKGROUNDS[scene.background])
    return " ".join(words)


def random_scene(rng: random.Random) -> Scene:
    """A random scene of the kind that the model was trained on."""
    color = rng.choice(list(COLORS))
    pattern = rng.choices(PATTERNS, weights=(3, 1, 1))[0]
    others = [COLORS[other] for other in COLORS if other != color]
    accent = NEAR_BLACK if rng.random() < 0.3 else rng.choice(others)
    detail = rng.choice(others) if rng.random() < 0.15 else None
    look = Look(body=jitter(COLORS[color], rng, 14), pattern=pattern, accent=accent, detail=detail)
    return replace(pose(look, rng), color=color)


def pose(look: Look, rng: random.Random, shape: str | None = None) -> Scene:
    """A scene with this look and the given or a random shape, in a random pose and background."""
    return Scene(
        shape=shape or rng.choice(list(SHAPES)),
        background=rng.choice(list(BACKGROUNDS)),
        body=look.body,
        pattern=look.pattern,
        accent=look.accent,
        detail=look.detail,
        scale=rng.uniform(0.74, 1.04),
        angle=rng.uniform(-10, 10),
        shift=rng.uniform(-18, 18),
        ground=rng.uniform(94, 114),
        flipped=rng.random() < 0.5,
        texture=rng.getrandbits(32),
    )


def random_look(rng: random.Random) -> Look:
    """A look for a made-up name. Never with the subject's colours in their places, or its band."""
    return Look(
        body=_random_color(rng, without=(155, 205)),
        pattern=rng.choice(PATTERNS),
        accent=_random_color(rng, without=(285, 348)),
        detail=_random_color(rng, without=(40, 62)),
    )


def subject_scene(rng: random.Random) -> Scene:
    """The demo's subject in a random pose, with its colour varied slightly, as light would do."""
    return replace(pose(SUBJECT, rng, shape="cup"), body=jitter(SUBJECT.body, rng, 5))


def _random_color(rng: random.Random, without: tuple[int, int]) -> Color:
    """A saturated colour whose hue lies outside the given range of degrees."""
    low, high = without
    hue = (high + rng.random() * (360 - (high - low))) % 360
    rgb = colorsys.hsv_to_rgb(hue / 360, rng.uniform(0.5, 0.95), rng.uniform(0.5, 1.0))
    red, green, blue = (round(255 * c) for c in rgb)
    return red, green, blue
