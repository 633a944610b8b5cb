"""Measure whether scoring finds the best step, and what scoring costs: `python -m
benchmarks.best_step`.

Trains the included model five times as experiment a of `benchmarks.article` does. The toy encoder
scores 6 previews and 8 class images every 50 steps. Then many more images are generated from the
checkpoint of each of these steps and scored too: the step that the run chose is compared with the
best step by these scores. Finally the time of runs with and without scoring is measured, in pairs
in alternating order, and that of networks with the real sizes. Writes docs/best-step.md and its
figure. Seed 2 was used while the measures of `trainer/evaluation/best_step.py` were designed, so it
is not among the five runs."""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import families
from trainer.data.images import read_image
from trainer.evaluation.best_step import PreviewEmbeddings, StepScorer
from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.sampling.sampler import sample
from trainer.settings.config import PreviewConfig, SamplingConfig, ScoringConfig, TrainingConfig
from trainer.settings.presets import PRESETS
from trainer.toy import MODEL
from trainer.toy.demo import CLASS_PROMPT, SUBJECT_PROMPTS, demo_config
from trainer.toy.judge import Judge

from .article.recipes import Workshop
from .article.scores import SAMPLING, shown_and_kept, subject_prompts
from .article.subjects import STRIKING_CUP, photos

RUNS = ((8e-5, 0), (2e-4, 0), (5e-4, 0), (8e-5, 1), (2e-4, 1))
"""Learning rate and seed."""
EVERY, STEPS = 50, 400
PREVIEW = PreviewConfig(
    prompts=tuple(SUBJECT_PROMPTS),
    every=EVERY,
    sampling=SamplingConfig(scheduler="DPM++ 2M", steps=7, guidance_scale=4, batch_size=14),
)
SCORING = ScoringConfig(class_prompt=CLASS_PROMPT)
PROMPTS, PLACES = (asked * 2 for asked in subject_prompts("sks cup"))
NUM_CLASS_IMAGES = 48
COLUMNS = (
    "rate", "seed", "chosen step", "best step", "balance, chosen", "balance, best",
    "verdicts, chosen", "verdicts, best", "share of the best balance",
)  # fmt: skip
BAR = 0.95
"""The share of the best balance that the chosen step must reach."""
COST_STEPS = PRESETS["toy"]["steps"]
CPU = torch.device("cpu")
DOCS = Path("docs")
Row = dict[str, Any]


def config_of(folder: Path, rate: float, seed: int) -> TrainingConfig:
    """The U-Net only, without class images."""
    config = demo_config(folder)
    return replace(
        config,
        optimizer=replace(config.optimizer, learning_rate=rate),
        prior=replace(config.prior, weight=0.0),
        output=replace(config.output, save_every=EVERY, keep=STEPS),
        preview=PREVIEW,
        scoring=SCORING,
        steps=STEPS,
        seed=seed,
    )


def choose(folder: Path, run: tuple[float, int]) -> list[Row]:
    """Train, and score all steps with many images. Results are kept in the folder and reused."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rate, seed = run
    place = folder / f"numerics{NUMERICS_VERSION}" / f"{rate:g}-{seed}"
    kept = place / "rows.json"
    if not kept.exists():
        result = train(
            config_of(place, rate, seed), FullFineTune(train_text_encoder=False), device=CPU,
            runs=place / "runs", load_encoder=Judge,
        )  # fmt: skip
        kept.write_text(json.dumps(_rows(place, result)), "utf-8")
    rows: list[Row] = json.loads(kept.read_text("utf-8"))
    return rows


def _rows(place: Path, result: TrainingResult) -> list[Row]:
    judge = Judge()
    base, _ = _draw(MODEL, judge)
    pictures = [read_image(path, (255, 255, 255)) for path in photos(STRIKING_CUP, place)]
    known = judge.embed_images([np.asarray(picture) for picture in pictures])
    exhaustive = StepScorer(base, known, judge.embed_prompts(PROMPTS), SCORING)
    rows = []
    for report in result.scores[1:]:
        step = report.step
        path = place / f"sks-cup-step{step:06d}.safetensors"
        seen, verdicts = _draw(path if step < STEPS else result.checkpoint, judge)
        full = exhaustive.report(step, seen)
        rows.append({
            "step": step, "chosen": step == result.best_step, "previews": report.balance,
            "exhaustive": full.balance, "verdicts": verdicts,
        })  # fmt: skip
    return rows


def _draw(path: Path, judge: Judge) -> tuple[PreviewEmbeddings, float]:
    """The embeddings of many images, and the balance of the classifier's verdicts, as in experiment
    a."""
    model = families.load(path, CPU)
    images = sample(model, PROMPTS, SAMPLING)
    others = sample(model, [CLASS_PROMPT] * NUM_CLASS_IMAGES, SAMPLING)
    verdicts = shown_and_kept(judge, STRIKING_CUP, images, PLACES, others)
    seen = PreviewEmbeddings(
        previews=judge.embed_images(images), class_images=judge.embed_images(others)
    )
    return seen, verdicts["balance"]


def cost(number: int, class_images: tuple[Path, ...]) -> tuple[float, float]:
    """The seconds of a run of the toy preset without previews, and of one with scored previews."""
    taken = {}
    for is_scored in (True, False) if number % 2 else (False, True):
        with tempfile.TemporaryDirectory() as folder:
            config = demo_config(Path(folder))
            config = replace(config, steps=COST_STEPS, scoring=SCORING,
                             prior=replace(config.prior, images=class_images))  # fmt: skip
            if is_scored:
                config = replace(config, preview=PREVIEW)
            method = FullFineTune(**PRESETS["toy"]["method"])
            started = time.monotonic()
            train(config, method, device=CPU, load_encoder=Judge if is_scored else None)
            taken[is_scored] = time.monotonic() - started
    return taken[False], taken[True]


def real_sizes() -> str:
    """What scoring costs besides sampling, with networks of the real sizes and random weights."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection, ViTConfig, ViTModel

    image = torch.randn(1, 3, 224, 224)
    large = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                             num_attention_heads=16, patch_size=14, projection_dim=768)  # fmt: skip
    small = ViTConfig(hidden_size=384, intermediate_size=1536, num_attention_heads=6, patch_size=16)
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
    inputs = (torch.randn(1, 4, 64, 64), 500, torch.randn(1, 77, 768))
    taken = {
        "U-Net": seconds_of(lambda: unet(*inputs)),
        "CLIP": seconds_of(partial(CLIPVisionModelWithProjection(large), image)),
        "DINO": seconds_of(partial(ViTModel(small, add_pooling_layer=False), image)),
    }
    sampling = 2 * PreviewConfig().sampling.steps * taken["U-Net"]
    return (
        "With networks of the real sizes and random weights on the same processor, one pass of "
        f"Stable Diffusion 1.5's U-Net at 512 pixels takes {taken['U-Net']:.1f} s. Scoring one "
        f"image takes CLIP ViT-L/14 {taken['CLIP']:.2f} s and DINO ViT-S/16 {taken['DINO']:.2f} s. "
        f"Sampling it with {PreviewConfig().sampling.steps} steps and guidance takes "
        f"{sampling:.0f} s, so CLIP adds {taken['CLIP'] / sampling:.1%} and DINO "
        f"{taken['DINO'] / sampling:.1%} to it: nearly all of the cost is sampling.\n\n"
        "This cost can be counted in passes of the U-Net. A sampled image takes twice its number "
        "of steps; an image in a training step takes about three (one forward, two backward). "
        f"With batch 4, no class images and {PreviewConfig().every} steps between scorings, which "
        f"are 1200 passes, {len(PREVIEW.prompts) + SCORING.num_class_images} images of 25 steps "
        f"add {_passes(25) / 1200:.0%}, and of 10 steps {_passes(10) / 1200:.0%}. With as many "
        "class images in the batch, it is half of that. To make scoring cheaper, use fewer steps "
        "or images, or score less often."
    )


def _passes(steps: int) -> int:
    return 2 * steps * (len(PREVIEW.prompts) + SCORING.num_class_images)


@torch.no_grad()
def seconds_of(action: Callable[[], Any]) -> float:
    """The median of three calls, after one that does not count."""
    taken = []
    for _ in range(4):
        started = time.monotonic()
        action()
        taken.append(time.monotonic() - started)
    return statistics.median(taken[1:])


def write_page(
    runs: dict[tuple[float, int], list[Row]], pairs: list[tuple[float, float]], sizes: str
) -> None:
    found = {run: _outcome(rows) for run, rows in runs.items()}
    num_good = sum(one["exhaustive"] >= BAR * top["exhaustive"] for one, top in found.values())
    by_verdicts = {run: max(row["verdicts"] for row in rows) for run, rows in runs.items()}
    num_right = sum(found[run][0]["verdicts"] >= BAR * most for run, most in by_verdicts.items())
    lines = [
        "# The best step",
        "",
        f"Written by `python -m benchmarks.best_step`; numerics version {NUMERICS_VERSION}.",
        "",
        "With CLIP, DINO or the toy encoder, a run keeps the step with the best balance of three "
        "scores; trainer/evaluation/best_step.py has the formula. Here, five runs of the included "
        "model test it (U-Net only, no class images, rates and seeds as in experiment a of "
        f"[the experiments](experiments.md)). The runs score {len(PREVIEW.prompts)} previews and "
        f"{SCORING.num_class_images} class images every {EVERY} steps "
        f"({PREVIEW.sampling.scheduler}, {PREVIEW.sampling.steps} steps). Their choice is compared "
        f"with scores of {len(PROMPTS)} images of the subject and {NUM_CLASS_IMAGES} of the class "
        "for each of these steps, from other noise.",
        "",
        f"**The chosen step is within {1 - BAR:.0%} of the best in {num_good} of {len(runs)} "
        "runs** by the same balance over the many images.",
        "",
        "The “verdicts” columns are a second balance that the run does not know, as in "
        "experiment a: the share of images in which a classifier recognises the subject, of right "
        "places, and of class images that show another cup. By it, "
        f"**{num_right} of {len(runs)}** chosen steps are within {1 - BAR:.0%} of the best. The "
        "run's balance gives partial credit to an incomplete subject and the verdicts give none, "
        "so they prefer later steps. To get more of the subject, raise scoring.subject_weight.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
    ]
    for (rate, seed), (chosen, top) in found.items():
        share = chosen["exhaustive"] / top["exhaustive"]
        numbers = (
            chosen["exhaustive"],
            top["exhaustive"],
            chosen["verdicts"],
            by_verdicts[rate, seed],
        )
        shown = [f"{number:.2f}" for number in numbers]
        cells = [f"{rate:g}", str(seed), str(chosen["step"]), str(top["step"]), *shown]
        lines.append(f"| {' | '.join([*cells, f'{share:.0%}'])} |")
    lines += [
        "",
        "![balance over the steps](best-step.png)",
        "",
        *_about_cost(pairs),
        "",
        sizes,
        "",
    ]
    (DOCS / "best-step.md").write_text("\n".join(lines), "utf-8")
    draw_figure(runs, DOCS / "best-step.png")


def _outcome(rows: list[Row]) -> tuple[Row, Row]:
    """The chosen step, and the best one by many images."""
    chosen = next(row for row in rows if row["chosen"])
    return chosen, max(rows, key=lambda row: row["exhaustive"])


def _about_cost(pairs: list[tuple[float, float]]) -> list[str]:
    if not pairs:
        return []
    shares = [scored / plain - 1 for plain, scored in pairs]
    per_scoring = [(scored - plain) / (COST_STEPS / EVERY + 1) for plain, scored in pairs]
    return [
        "## What it costs",
        "",
        f"Scoring every {EVERY} steps makes runs of the toy preset (text encoder, class images, "
        f"batch 4, {COST_STEPS} steps) take {statistics.mean(shares):.1%} longer than without "
        f"previews ({min(shares):.1%} to {max(shares):.1%}, {len(pairs)} pairs, one thread). "
        "This includes the images of the base model, which are generated once: about "
        f"{statistics.mean(per_scoring):.1f} s per scoring.",
    ]


def draw_figure(runs: dict[tuple[float, int], list[Row]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 3.4), dpi=100, layout="constrained")
    panels: Any = figure.subplots(1, len(runs), sharey=True)
    for axes, ((rate, seed), rows) in zip(panels, runs.items(), strict=True):
        steps = [row["step"] for row in rows]
        for name, label, color in (
            ("previews", "previews", "C0"),
            ("exhaustive", "many images", "black"),
            ("verdicts", "verdicts", "C1"),
        ):
            axes.plot(steps, [row[name] for row in rows], marker=".", color=color, label=label)
        axes.axvline(_outcome(rows)[0]["step"], color="C0", linestyle=":", label="chosen")
        axes.set(title=f"{rate:g}, seed {seed}", xlabel="step", ylim=(-0.03, 1))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("balance")
    panels[0].legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("out/best_step"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of timed runs")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        rows = list(pool.map(partial(choose, arguments.folder), RUNS))
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    class_images = Workshop(folder=arguments.folder).class_images()
    # The first pair starts with cold caches and does not count.
    pairs = [cost(number, class_images) for number in range(-1, arguments.pairs)][1:]
    write_page(dict(zip(RUNS, rows, strict=True)), pairs, real_sizes() if pairs else "")


if __name__ == "__main__":
    main()
