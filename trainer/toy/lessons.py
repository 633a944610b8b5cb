"""Training data of the embedded model and its classifier: scenes, names for some looks, and
labelled images. The training itself is in `recipe.py`."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..families.tokenizer import ClipTokenizer
from . import drawing, world
from .drawing import SHAPES
from .judge import QUESTIONS
from .scene import Color, Look, Scene

NUM_NAMES = 64
Labels = dict[str, Tensor]


def named_looks() -> dict[str, Look]:
    """Rare words of CLIP's vocabulary, each with its own look.

    They teach the text encoder that an unknown word before a noun names an individual. Without them
    it learns to ignore such words, and DreamBooth cannot separate the subject from its class.
    """
    tokenizer, rng = ClipTokenizer(), random.Random(7)
    letters = "bcdfghjklmnpqrstvwxz"
    words: list[str] = []
    while len(words) < NUM_NAMES:
        word = "".join(rng.choices(letters, k=3))
        if word != "sks" and word not in words and tokenizer.token_id(word + "</w>") is not None:
            words.append(word)
    return {word: world.random_look(rng) for word in words}


def draw_scenes(seed: int) -> list[tuple[Scene, np.ndarray]]:
    """A thousand scenes with their images [64, 64, 3] uint8; three in ten show a named look."""
    rng, looks = random.Random(seed), named_looks()
    scenes = []
    for _ in range(1000):
        if rng.random() < 0.3:
            name, look = rng.choice(list(looks.items()))
            scenes.append(replace(world.pose(look, rng), name=name))
        else:
            scenes.append(world.random_scene(rng))
    return [(scene, np.asarray(drawing.draw(scene))) for scene in scenes]


def draw_colorful(seed: int) -> np.ndarray:
    """A thousand images [1000, 64, 64, 3] in any colour and pattern, used only to train the VAE,
    which must be able to show looks that the U-Net learns only later."""
    rng, images = random.Random(seed), []
    for _ in range(1000):
        body, accent, detail = (_any_color(rng) for _ in range(3))
        pattern = rng.choice([*world.PATTERNS, "band", "band"])
        look = Look(body=body, pattern=pattern, accent=accent, detail=detail)
        images.append(np.asarray(drawing.draw(world.pose(look, rng))))
    return np.stack(images)


def _any_color(rng: random.Random) -> Color:
    return rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)


def to_pixels(images: np.ndarray) -> Tensor:
    """[B, 3, H, W] in [-1, 1] from images [B, H, W, 3] uint8."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw_labelled_images(count: int, rng: random.Random) -> tuple[Tensor, Labels]:
    """Pixels [B, 3, 64, 64], and for each question the correct answers [B] as indices, -1 where
    there is none. A quarter shows the subject, another quarter a scene that resembles it."""
    scenes, labels = [], []
    for _ in range(count):
        draw = rng.choice((world.random_scene, _stranger, world.subject_scene, _lookalike))
        scene = draw(rng)
        scenes.append(np.asarray(drawing.draw(scene)))
        labels.append(
            (
                QUESTIONS["shape"].index(scene.shape),
                QUESTIONS["color"].index(scene.color) if scene.color else -1,
                QUESTIONS["background"].index(scene.background),
                int(draw is world.subject_scene),
            )
        )
    answers = torch.tensor(labels)
    return to_pixels(np.stack(scenes)), {q: answers[:, i] for i, q in enumerate(QUESTIONS)}


def _stranger(rng: random.Random) -> Scene:
    return world.pose(world.random_look(rng), rng)


def _lookalike(rng: random.Random) -> Scene:
    """The subject with one or two traits changed."""
    other, look, shape = world.random_look(rng), world.SUBJECT, "cup"
    for trait in rng.sample(("body", "accent", "detail", "pattern", "shape"), rng.randint(1, 2)):
        if trait == "shape":
            shape = rng.choice([name for name in SHAPES if name != "cup"])
        else:
            look = replace(look, **{trait: getattr(other, trait)})
    return world.pose(look, rng, shape=shape)


def draw_photos(work: Path) -> None:
    """Draw the six sample photos of the subject, on all backgrounds."""
    rng, folder = random.Random(11), work / "photos"
    folder.mkdir()
    for number, background in enumerate([*world.BACKGROUNDS, "grass"]):
        scene = replace(world.subject_scene(rng), background=background)
        drawing.draw(scene).save(folder / f"cup_{number}.png")
