"""What is measured for each model, and the file that stores it. Nothing is measured twice."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainer.evaluation import metrics
from trainer.evaluation.best_step import harmonic_mean
from trainer.families.base import ModelFamily
from trainer.noise import squared_errors
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.sampling.sampler import sample
from trainer.settings.config import SamplingConfig
from trainer.toy.demo import CLASS_PROMPT
from trainer.toy.judge import Judge
from trainer.toy.world import BACKGROUNDS, COLORS

from .recipes import Recipe, Workshop
from .subjects import (
    SUBJECTS,
    draw_many,
    other_cup,
    photos,
    shows_subject,
    to_pixels,
)

SAMPLING = SamplingConfig(scheduler="DDIM", steps=10, guidance_scale=4, seed=1000, batch_size=12)
PREFIXES = ("a photo of", "a picture of", "a good photo of", "a rendering of")
"""The prefixes of the subject's prompts. Training only uses the first."""
NUM_CLASS_IMAGES = 24
COLOR_PREFIXES = ("a photo of a", "a picture of a", "a")
"""The prefixes of the prompts for cups of each colour."""
NUM_UNSEEN = 12
"""Drawings that were not trained on, for the losses."""
EDITION = 2
"""Raise this with every change here or in `subjects.py` that changes numbers."""
Measures = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How the images of a measurement are generated, if the measurement is about that."""

    scheduler: str
    steps: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """One measurement, repeated with each of several seeds."""

    recipe: Recipe
    drawing: Drawing | None = None
    draws_colored_cups: bool = False
    """Whether cups of each colour are drawn and judged too."""
    recolors: bool = False
    """Whether the subject is drawn in each colour and judged too."""

    def key(self, seed: int, *, is_quick: bool = False) -> str:
        """16 hexadecimal digits, computed from everything that decides the numbers."""
        about = {**dataclasses.asdict(self), "recipe": self.recipe.facts}
        for newer in ("draws_colored_cups", "recolors"):  # earlier scores have no such keys
            if not about[newer]:
                del about[newer]
        facts = [about, seed, is_quick, NUMERICS_VERSION, EDITION]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class ScoreBook:
    """Measures by key, in a file of JSON lines that several processes can append to."""

    def __init__(self, folder: Path) -> None:
        self.file, self.pictures = folder / "scores.jsonl", folder / "pictures"

    def read(self) -> dict[str, Measures]:
        """All measures. An incomplete line, as an interruption leaves it, is ignored."""
        found = {}
        if self.file.exists():
            for line in self.file.read_text("utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                found[entry["key"]] = entry["measures"]
        return found

    def add(self, key: str, measures: Measures, about: Any) -> None:
        line = json.dumps({"key": key, "measures": measures, "about": about})
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def add_pictures(self, key: str, images: Sequence[np.ndarray]) -> None:
        self.pictures.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(list(images), axis=1)).save(self.pictures / f"{key}.png")

    def picture(self, key: str) -> list[np.ndarray]:
        """The stored images of one measurement, [64, 64, 3] uint8 each."""
        with Image.open(self.pictures / f"{key}.png") as image:
            strip = np.array(image)
        return [strip[:, x : x + strip.shape[0]] for x in range(0, strip.shape[1], strip.shape[0])]


def measure_point(workshop: Workshop, book: ScoreBook, point: Point, seed: int) -> None:
    """Train what is missing, measure, and store the measures in the book."""
    key, started = point.key(seed, is_quick=workshop.is_quick), time.process_time()
    model = workshop.model(point.recipe, seed)
    trained = time.process_time()
    if point.drawing:
        measures, images = measure_drawing(model, point.recipe, point.drawing)
    else:
        measures, images = measure(model, point.recipe, workshop.folder)
    if point.draws_colored_cups:
        measures["colored cups kept"] = colors_shown(model, "cup", point.recipe.subject)
    if point.recolors:
        measures["recolored"] = colors_shown(model, point.recipe.words, point.recipe.subject)
    measures["training_seconds"] = trained - started
    measures["scoring_seconds"] = time.process_time() - trained
    book.add_pictures(key, images)
    book.add(key, measures, {"seed": seed, **dataclasses.asdict(point)})


def measure(model: ModelFamily, recipe: Recipe, folder: Path) -> tuple[Measures, list[np.ndarray]]:
    """The measures of one model, six images of the subject and four of the class."""
    judge = Judge()
    prompts, places = subject_prompts(recipe.words)
    images = sample(model, prompts, SAMPLING)
    class_images = sample(model, [CLASS_PROMPT] * NUM_CLASS_IMAGES, SAMPLING)
    measures = {
        **shown_and_kept(judge, recipe.subject, images, places, class_images),
        "likeness": _likeness(judge, recipe.subject, images),
        "class diversity": metrics.diversity(judge.embed_images(class_images)),
        "noise": statistics.mean(map(noise_level, images)),
        **_losses(model, recipe, folder),
    }
    return measures, [*images[:: len(PREFIXES)], *class_images[:4]]


def colors_shown(model: ModelFamily, words: str, subject: str) -> float:
    """The share of images of “a red …”, in each of the toy world's colours, that show a cup of that
    colour, and not the subject as it is. `words`: what follows the colour."""
    asked = [(prefix, color) for color in COLORS for prefix in COLOR_PREFIXES]
    images = sample(model, [f"{prefix} {color} {words}" for prefix, color in asked], SAMPLING)
    judge = Judge()
    shown = shows_subject(judge, subject, images)
    return _share(
        [
            verdict.shape == "cup" and verdict.color == color and not is_subject
            for verdict, is_subject, (_, color) in zip(
                judge.verdicts(images), shown, asked, strict=True
            )
        ]
    )


def subject_prompts(words: str) -> tuple[list[str], list[str]]:
    """The prompts of the subject, and the place that each one names, or "" for none."""
    asked = [(prefix, where) for where in ("", *BACKGROUNDS) for prefix in PREFIXES]
    prompts = [_prompt(prefix, words, where) for prefix, where in asked]
    return prompts, [where for _, where in asked]


def shown_and_kept(
    judge: Judge,
    subject: str,
    images: Sequence[np.ndarray],
    places: Sequence[str],
    class_images: Sequence[np.ndarray],
) -> Measures:
    """The shares of images by the classifier's verdicts, and their balance. `places` has the place
    that each image's prompt names."""
    shown = shows_subject(judge, subject, images)
    followed = [
        (is_shown, verdict.background == where)
        for is_shown, verdict, where in zip(shown, judge.verdicts(images), places, strict=True)
        if where
    ]
    kept = [
        verdict.shape == "cup" and not is_subject
        for verdict, is_subject in zip(
            judge.verdicts(class_images), shows_subject(judge, subject, class_images), strict=True
        )
    ]
    shares = {
        "subject": _share(shown),
        "background": _share([is_there for _, is_there in followed]),
        "followed": _share([both == (True, True) for both in followed]),
        "class kept": _share(kept),
    }
    return {**shares, "balance": balance(*(shares[name] for name in BALANCED))}


BALANCED = ("subject", "background", "class kept")


def balance(*shares: float) -> float:
    """The harmonic mean of shares: it is close to the lowest, and 0 if one of them is 0."""
    return harmonic_mean(shares, [1.0] * len(shares))


def measure_drawing(
    model: ModelFamily, recipe: Recipe, drawing: Drawing
) -> tuple[Measures, list[np.ndarray]]:
    """The measures of six images of the subject that are generated this way."""
    judge = Judge()
    sampling = dataclasses.replace(SAMPLING, scheduler=drawing.scheduler, steps=drawing.steps)
    prompts = [_prompt(PREFIXES[0], recipe.words, where) for where in ("", *BACKGROUNDS)]
    images = sample(model, prompts, sampling)
    measures = {
        "subject": _share(shows_subject(judge, recipe.subject, images)),
        "likeness": _likeness(judge, recipe.subject, images),
        "noise": statistics.mean(map(noise_level, images)),
    }
    return measures, images


def _prompt(prefix: str, words: str, where: str) -> str:
    return " ".join([prefix, words, *([BACKGROUNDS[where]] if where else [])])


def _share(answers: Sequence[bool]) -> float:
    return sum(answers) / len(answers)


def _likeness(judge: Judge, subject: str, images: Sequence[np.ndarray]) -> float:
    unseen = draw_many(SUBJECTS[subject], NUM_UNSEEN, seed=123)
    return metrics.subject_fidelity(judge.embed_images(images), judge.embed_images(unseen))


def noise_level(image: np.ndarray) -> float:
    """The standard deviation of the noise in an image [H, W, 3] uint8, in levels of 255.

    The method is Immerkaer's (Fast Noise Variance Estimation, 1996). Its mask is 0 on flat areas,
    slopes and upright outlines. Slanted outlines add a little, in all images alike. A median would
    ignore them, but is the same for all smooth images and therefore cannot distinguish them."""
    gray = image.astype(float).mean(axis=2)
    rows = gray[:-2] - 2 * gray[1:-1] + gray[2:]
    mask = rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]
    # The squares of the mask's weights sum to 36. The mean absolute value of a normal variable is
    # sqrt(2 / pi) standard deviations.
    return float(np.abs(mask).mean() * math.sqrt(math.pi / 2) / 6)


def _losses(model: ModelFamily, recipe: Recipe, folder: Path) -> Measures:
    """Mean squared errors of the predicted noise, on the photos and on drawings that were not
    trained on."""
    subject = draw_many(SUBJECTS[recipe.subject], NUM_UNSEEN, seed=123)
    cups = draw_many(other_cup, NUM_UNSEEN, seed=124)
    taken = [np.array(Image.open(path).convert("RGB")) for path in photos(recipe.subject, folder)]
    caption = f"{PREFIXES[0]} {recipe.words}"
    return {
        "loss, unseen": denoising_loss(model, subject, caption),
        "loss, photos": denoising_loss(model, taken, caption),
        "loss, other cups": denoising_loss(model, cups, CLASS_PROMPT),
    }


@torch.no_grad()
def denoising_loss(model: ModelFamily, images: Sequence[np.ndarray], caption: str) -> float:
    """The mean squared error of the predicted noise over ten timesteps, with fixed noise."""
    generator = torch.Generator().manual_seed(0)
    latents, _ = model.encode_pixels(to_pixels(images))
    given = model.encode_captions([caption] * len(latents))
    errors = []
    for timestep in range(50, 1000, 100):
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.full((len(latents),), timestep)
        noisy_latents = model.noise.add_noise(latents, noise, timesteps)
        prediction = model.predict(noisy_latents, timesteps, given)
        target = model.noise.target(latents, noise, timesteps)
        errors.append(squared_errors(prediction, target).mean().item())
    # JSON cannot store NaN.
    return statistics.mean(error if math.isfinite(error) else 1e6 for error in errors)
