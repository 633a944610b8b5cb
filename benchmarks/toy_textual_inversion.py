"""Compare textual inversion, DreamBooth and both, with equal numbers of steps, on the included
model: `python -m benchmarks.toy_textual_inversion`.

Each arm learns the cup of the sample photos with several seeds. A classifier, which was trained on
drawings and never on the model's images, counts how many images show exactly this cup, how many
have its body colour, and how many images of the class still show other cups. Prints a table with
the range over the seeds, writes it into docs/textual-inversion.md, and saves a grid of images. Runs
that were finished before are reused."""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.article.scores import denoising_loss
from benchmarks.article.subjects import draw_many
from trainer import families
from trainer.data.examples import find_examples
from trainer.data.images import read_image
from trainer.evaluation.plots import grid
from trainer.families.base import ModelFamily
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs.results import TrainingResult
from trainer.sampling.sampler import sample
from trainer.settings.config import OptimizerConfig, TrainingConfig
from trainer.settings.presets import INVERSION_PRESETS
from trainer.toy import MODEL, PHOTOS, world
from trainer.toy.demo import CLASS_PROMPT, SAMPLING, SCORED_IMAGES, demo_config
from trainer.toy.judge import Judge
from trainer.toy.world import BACKGROUNDS

logger = logging.getLogger(__name__)

BUDGETS = (100, 300)
SEEDS = (0, 1, 2)
WORD, RARE_WORD, CLASS_WORD = "<sks>", "sks cup", "a cup"
INVERSION_SHARE = 0.8
"""The share of the steps that textual inversion gets in the combination: the article uses 2000 of
2500."""
PAGE = Path("docs/textual-inversion.md")
START, END = "<!-- table -->", "<!-- end of table -->"
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Scores:
    """Shares of images from 0 to 1, as the classifier sees them."""

    subject: float
    """Images of the subject that show it."""
    color: float
    """Images of the subject with the body colour of most of the photos."""
    loss: float
    """Mean squared error of the predicted noise on drawings of the subject that were not trained
    on."""
    prior: float
    """Images of the class that show another cup."""


Arm = Callable[[TrainingConfig, int], tuple[ModelFamily, str]]
"""Trains for a number of steps. Returns the model, and the words for the subject in its prompts."""


def rare_word(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    return families.load(MODEL, CPU), RARE_WORD


def class_word(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    return families.load(MODEL, CPU), CLASS_WORD


def inversion(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    result = _invert(config, steps)
    return families.load(MODEL, CPU, result.embedding), WORD


def unet(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    return _trained(replace(config, steps=steps), FullFineTune())


def text_encoder(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    return _trained(replace(config, steps=steps), FullFineTune(train_text_encoder=True))


def inversion_then_unet(config: TrainingConfig, steps: int) -> tuple[ModelFamily, str]:
    first = round(INVERSION_SHARE * steps)
    embedding = _invert(config, first).embedding
    dataset = replace(config.dataset, prompt=f"a photo of {WORD}")
    config = replace(config, dataset=dataset, embedding=embedding, steps=steps - first)
    result = _train(config, FullFineTune())
    return families.load(result.checkpoint, CPU, embedding), WORD


ARMS: dict[str, Arm] = {
    "base model, “sks cup”": rare_word,
    "base model, “a cup”": class_word,
    "textual inversion": inversion,
    "DreamBooth, U-Net only": unet,
    "textual inversion, then DreamBooth (U-Net only)": inversion_then_unet,
    "DreamBooth with the text encoder": text_encoder,
}


def _trained(config: TrainingConfig, method: FullFineTune) -> tuple[ModelFamily, str]:
    return families.load(_train(config, method).checkpoint, CPU), RARE_WORD


def _invert(config: TrainingConfig, steps: int) -> TrainingResult:
    preset = INVERSION_PRESETS["toy"]
    config = replace(
        config,
        steps=steps,
        dataset=replace(config.dataset, prompt=f"a photo of {WORD}"),
        prior=replace(config.prior, weight=0.0),
        optimizer=OptimizerConfig(**preset["optimizer"]),
    )
    return _train(config, TextualInversion(placeholder=WORD, initializer="cup", **preset["method"]))


def _train(config: TrainingConfig, method: FullFineTune | TextualInversion) -> TrainingResult:
    return train(config, method, device=CPU, runs=config.output.folder / "runs")


def measure(arm: Arm, config: TrainingConfig, steps: int) -> tuple[Scores, list[np.ndarray]]:
    """The scores, and the images of the subject."""
    model, words = arm(config, steps)
    prompts = [f"a photo of {words}"]
    prompts += [f"a photo of {words} {where}" for where in BACKGROUNDS.values()]
    images = sample(model, prompts * (SCORED_IMAGES // len(prompts)), SAMPLING)
    judge = Judge()
    colors = [verdict.color for verdict in judge.verdicts(images)]
    wanted = statistics.mode(verdict.color for verdict in judge.verdicts(_photos()))
    unseen = draw_many(world.subject_scene, SCORED_IMAGES, seed=123)
    scores = Scores(
        subject=judge.subject_score(images),
        color=colors.count(wanted) / len(colors),
        loss=denoising_loss(model, unseen, prompts[0]),
        prior=judge.prior_score(sample(model, [CLASS_PROMPT] * SCORED_IMAGES, SAMPLING)),
    )
    return scores, images[: len(prompts)]


def _photos() -> list[np.ndarray]:
    paths = [example.path for example in find_examples([PHOTOS], "-")]
    return [np.array(read_image(path, (255, 255, 255)).resize((64, 64))) for path in paths]


def table(results: dict[tuple[int, str], list[Scores]]) -> str:
    """A Markdown table with the mean of the seeds, and the lowest and highest value in brackets."""
    lines = [
        "| steps | trained | subject | body colour | loss on the subject | other cups kept |",
        "|---|---|---|---|---|---|",
    ]
    for (steps, arm), scores in results.items():
        cells = [
            _spread([getattr(score, name) for score in scores])
            for name in ("subject", "color", "loss", "prior")
        ]
        lines.append(" | ".join([f"| {steps}", arm, *cells]) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def runs(budgets: list[int]) -> Iterator[tuple[int, str]]:
    untrained, trained = list(ARMS)[:2], list(ARMS)[2:]
    yield from ((0, arm) for arm in untrained)
    yield from ((steps, arm) for steps in budgets for arm in trained)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/toy_textual_inversion"))
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: dict[tuple[int, str], list[Scores]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    for seed in arguments.seeds:
        for steps, arm in runs(arguments.budgets):
            config = replace(demo_config(arguments.folder), seed=seed)
            scores, images = measure(ARMS[arm], config, steps)
            results.setdefault((steps, arm), []).append(scores)
            rows.setdefault(f"{steps}: {arm}", images)
            logger.info("seed %d, %d steps, %s: %s", seed, steps, arm, scores)
    print(table(results))  # noqa: T201
    columns = ["", *BACKGROUNDS.values()]
    all_images = [image for images in rows.values() for image in images]
    sheet = grid(all_images, columns=columns, rows=list(rows))
    sheet.save(arguments.folder / "grid.png")
    _write(table(results), sheet)


def _write(text: str, sheet: Image.Image) -> None:
    page = PAGE.read_text("utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{text}\n{END}{after}", "utf-8")
    sheet.save(PAGE.with_suffix(".png"))


if __name__ == "__main__":
    main()
