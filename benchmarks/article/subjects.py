"""The two cups to be learned, as photos and as drawings that are not trained on, and what
recognises them. The striking one is also photographed in one room only, with masks.

The striking cup is the demo's. Its colours and band are new to the model, and the toy world's
classifier knows it. The subtle cup stands for a face: all of its traits are common, and only their
combination is unique. A linear classifier on the toy encoder's features distinguishes it from other
cups."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer import families
from trainer.data.examples import find_examples
from trainer.families.base import ModelFamily
from trainer.toy import MODEL, PHOTOS, drawing, world
from trainer.toy.judge import Judge
from trainer.toy.scene import Look, Scene

SUBTLE = Look(
    body=world.COLORS["blue"],
    pattern="striped",
    accent=world.COLORS["white"],
    detail=world.COLORS["orange"],
)
STRIKING_CUP, SUBTLE_CUP = "striking cup", "subtle cup"
CUP_IN_ONE_ROOM = "striking cup in one room"
NUM_LESSONS = 300
"""Drawings of each kind that the classifier is trained on. Half as many are added after a pass
through the VAE."""

SceneMaker = Callable[[random.Random], Scene]


def subtle_scene(rng: random.Random) -> Scene:
    """The subtle cup in a random pose, with small variations of its body colour, as light causes
    them."""
    scene = world.pose(SUBTLE, rng, shape="cup")
    return replace(scene, body=drawing.jitter(SUBTLE.body, rng, 5))


def other_cup(rng: random.Random) -> Scene:
    """A cup like those that the base model knows."""
    return replace(world.random_scene(rng), shape="cup")


def lookalike(rng: random.Random) -> Scene:
    """The subtle cup with one or two traits replaced."""
    other = world.random_scene(rng)
    traits = rng.sample(("body", "pattern", "accent", "detail"), rng.randint(1, 2))
    look = replace(SUBTLE, **{trait: getattr(other, trait) for trait in traits})
    return other_cup(rng) if look == SUBTLE else world.pose(look, rng, shape="cup")


SUBJECTS: dict[str, SceneMaker] = {
    STRIKING_CUP: world.subject_scene,
    SUBTLE_CUP: subtle_scene,
    CUP_IN_ONE_ROOM: world.subject_scene,
}


def draw_many(make: SceneMaker, number: int, seed: int) -> list[np.ndarray]:
    """Images [64, 64, 3] uint8, always the same for a seed."""
    rng = random.Random(seed)
    return [np.asarray(drawing.draw(make(rng))) for _ in range(number)]


def photos(subject: str, folder: Path) -> tuple[Path, ...]:
    """Six photos of a cup. Those of the striking cup are the demo's; the other cup has the same
    surroundings. Those in one room have masks beside them."""
    if subject == STRIKING_CUP:
        return tuple(example.path for example in find_examples([PHOTOS], "-"))
    if subject == CUP_IN_ONE_ROOM:
        return _photos_in_one_room(folder)
    rng, paths = random.Random(11), []
    for number, background in enumerate([*world.BACKGROUNDS, "grass"]):
        path = folder / "photos" / f"{subject.replace(' ', '_')}_{number}.png"
        scene = replace(SUBJECTS[subject](rng), background=background)
        paths.append(path)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            drawing.draw(scene).save(path)
    return tuple(paths)


def _photos_in_one_room(folder: Path) -> tuple[Path, ...]:
    """The same corner of a room each time, and the cup in six poses."""
    rng, paths = random.Random(12), []
    for number in range(6):
        paths.append(folder / "photos" / f"one_room_{number}.png")
        scene = replace(world.subject_scene(rng), background="room", texture=5)
        if not paths[-1].exists():
            paths[-1].parent.mkdir(parents=True, exist_ok=True)
            drawing.mask(scene).save(paths[-1].with_name(f"one_room_{number}-mask.png"))
            drawing.draw(scene).save(paths[-1])
    return tuple(paths)


def to_pixels(images: Sequence[np.ndarray]) -> Tensor:
    """[B, 3, 64, 64] in [-1, 1], from images [64, 64, 3] uint8."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def shows_subject(judge: Judge, subject: str, images: Sequence[np.ndarray]) -> list[bool]:
    """Whether each image shows exactly this cup."""
    if subject != SUBTLE_CUP:
        return [verdict.is_subject for verdict in judge.verdicts(images)]
    weight, bias = subtle_classifier()
    found: list[bool] = (judge.embed_images(images) @ weight + bias > 0).tolist()
    return found


@cache
def subtle_classifier() -> tuple[Tensor, Tensor]:
    """The weight [128] and bias [] of a logistic regression that recognises only the subtle cup."""
    judge, vae = Judge(), families.load(MODEL, torch.device("cpu"))
    lessons = []
    for seed, make in enumerate((subtle_scene, other_cup, lookalike), start=1):
        drawings = draw_many(make, NUM_LESSONS, seed)
        lessons.append(drawings + decoded(vae, drawings[: NUM_LESSONS // 2]))
    answers = torch.cat([torch.full((len(kind),), float(i == 0)) for i, kind in enumerate(lessons)])
    return _logistic_regression(judge.embed_images(sum(lessons, [])), answers)


@torch.no_grad()
def decoded(model: ModelFamily, images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The images after encoding and decoding with the model's VAE."""
    means = [model.encode_pixels(to_pixels([image]))[0] for image in images]
    pixels = torch.cat([model.decode_latents(mean).clamp(-1, 1) for mean in means])
    return list(((pixels + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())


def _logistic_regression(inputs: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    center, scale = inputs.mean(dim=0), inputs.std(dim=0) + 1e-4
    inputs = (inputs - center) / scale
    weight, bias = torch.zeros(inputs.shape[1]), torch.zeros(())
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=200)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = inputs @ weight + bias
        value = torch.nn.functional.binary_cross_entropy_with_logits(logits, answers)
        value = value + 1e-3 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    weight, bias = weight.detach() / scale, bias.detach()
    return weight, bias - weight @ center
