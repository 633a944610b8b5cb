"""Measure how well the included model follows its prompts: `python -m benchmarks.toy_quality
[FILE]`.

Generates images from prompts that name a shape, a colour and a background. A classifier, which was
trained on drawings and never on the model's images, says what they show. Prints the share of images
that show what the prompt asked for, with the range over the seeds, and saves a grid of the images.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from trainer import families
from trainer.evaluation.plots import grid
from trainer.families.base import ModelFamily
from trainer.sampling.sampler import sample
from trainer.settings.config import SamplingConfig
from trainer.toy import MODEL, world
from trainer.toy.drawing import SHAPES
from trainer.toy.judge import Judge

NUM_PROMPTS = 60
NUM_COLUMNS = 10


def prompts(seed: int) -> list[tuple[str, str, str]]:
    """The shape, colour and background of each prompt: a random choice of all combinations."""
    combinations = list(itertools.product(SHAPES, world.COLORS, world.BACKGROUNDS))
    random.Random(seed).shuffle(combinations)
    return combinations[:NUM_PROMPTS]


def measure(model: ModelFamily, seed: int) -> tuple[dict[str, float], list[np.ndarray]]:
    """The share of images that are right in each respect, and the images."""
    asked = prompts(seed)
    texts = [
        f"a photo of a {color} {shape} {world.BACKGROUNDS[where]}" for shape, color, where in asked
    ]
    sampling = SamplingConfig(steps=25, guidance_scale=4, seed=1000 * seed, batch_size=10)
    images = sample(model, texts, sampling)
    verdicts = Judge().verdicts(images)
    shares = {}
    for index, trait in enumerate(("shape", "color", "background")):
        right = [getattr(v, trait) == a[index] for v, a in zip(verdicts, asked, strict=True)]
        shares[trait] = statistics.mean(right)
    return shares, images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=MODEL)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--grid", type=Path, default=Path("out/toy_quality.png"))
    arguments = parser.parse_args()
    model = families.load(arguments.file, torch.device("cpu"))
    results = [measure(model, seed) for seed in range(arguments.seeds)]
    for trait in ("shape", "color", "background"):
        shares = [shares[trait] for shares, _ in results]
        spread = f"{min(shares):.3f} to {max(shares):.3f}"
        print(f"{trait:12} {statistics.mean(shares):.3f} ({spread})")  # noqa: T201
    arguments.grid.parent.mkdir(parents=True, exist_ok=True)
    asked = [" ".join(words) for words in prompts(0)]
    rows = [asked[i : i + NUM_COLUMNS] for i in range(0, NUM_PROMPTS, NUM_COLUMNS)]
    images = results[0][1]
    strips = [
        grid(images[i * NUM_COLUMNS : (i + 1) * NUM_COLUMNS], columns=row, rows=[""])
        for i, row in enumerate(rows)
    ]
    Image.fromarray(np.concatenate([np.asarray(strip) for strip in strips])).save(arguments.grid)


if __name__ == "__main__":
    main()
