"""The command: train, sample and score what is missing, subject by subject, and then write the
table. You can stop it at any time and run it again."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from trainer import toy
from trainer.methods.full import FullFineTune
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.precision import DTYPES
from trainer.sampling.schedulers import SCHEDULERS
from trainer.settings.config import PriorConfig, SamplingConfig, TrainingConfig
from trainer.storage import json_files

from . import __doc__ as protocol
from .dataset import choose, choose_prompts, read_subjects
from .runs import RECIPES, SEEDS_PER_PROMPT, Studio
from .scores import Encoders
from .table import NUM_IMAGES, Results, to_json, to_text


def parser() -> argparse.ArgumentParser:
    """The options. Those that the preset decides have no default."""
    drawing = SamplingConfig()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.dreambench",
        description=protocol,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="Stable Diffusion 1.x, or toy")
    add("--dataset", type=Path, required=True, help="folder of the paper's dataset")
    add("--dino", type=Path, help="folder of DINO ViT-S/16 as transformers saves it")
    add("--clip", type=Path, help="folder or .safetensors file of CLIP")
    add("--folder", type=Path, default=Path("out/dreambench"), help="where everything is stored")
    add("--subjects", nargs="+", default=[], metavar="NAME", help="only these")
    add("--prompts", nargs="+", default=[], metavar="N", help="only these, such as 1-5 21")
    add("--images", type=int, default=NUM_IMAGES, help="images of each prompt")
    add("--pres-pictures", type=int, default=25, help="class images for PRES; 0 leaves it out")
    add(
        "--preset",
        choices=RECIPES,
        default="paper",
        help="sets the options below that are not given",
    )
    add("--steps", type=int, help="optimizer steps")
    add("--learning-rate", type=float)
    add("--batch-size", type=int, help="photos per step")
    add(
        "--class-images",
        type=int,
        help="class images to train on; 0 trains without prior preservation",
    )
    add("--prior-weight", type=float, help="weight of the class images' loss")
    add("--text-encoder", action=argparse.BooleanOptionalAction, help="train it too")
    add("--optimizer", choices=OPTIMIZERS, default="AdamW")
    add("--precision", choices=DTYPES, default="fp32")
    add("--gradient-checkpointing", action="store_true", help="less memory, slower")
    add("--resolution", type=int, help="in pixels; default: the model's own")
    add("--identifier", default="sks", help="the rare token that names the subject")
    add("--sampling-steps", type=int, default=drawing.steps)
    add("--guidance-scale", type=float, default=drawing.guidance_scale)
    add("--scheduler", choices=SCHEDULERS, default=drawing.scheduler)
    add("--drawing-batch", type=int, default=drawing.batch_size, help="images generated at once")
    add("--seed", type=int, default=0, help="seed of the training, and of the first image")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add(
        "--discard-checkpoints",
        action="store_true",
        help="delete each checkpoint when its images are generated",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Return the exit code: 0 only if everything was measured."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        run(parser().parse_args(arguments))
    except KeyboardInterrupt:
        logging.error("Stopped. Run the same command again to continue.")
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        logging.error("%s", error)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Measure everything, and write the table after each subject."""
    subjects = choose(read_subjects(options.dataset), options.subjects)
    places = choose_prompts(options.prompts, subjects)
    studio = make_studio(options)
    studio.check(subjects)
    paths = {kind: path for kind in ("dino", "clip") if (path := getattr(options, kind))}
    encoders = Encoders(paths, options.folder, studio.device)
    measures: dict[str, dict[str, float]] = {}
    for number, subject in enumerate(subjects, start=1):
        logging.info("%s, %d of %d", subject.name, number, len(subjects))
        measures[subject.name] = encoders.measure(subject, studio.draw(subject, places))
        results = Results(
            label=label(options, studio.config(subject)),
            subjects=subjects,
            measures=measures,
            num_prompts=len(places),
            num_images=options.images,
            remarks=encoders.remarks(),
        )
        json_files.write_text(options.folder / "table.md", to_text(results))
        json_files.write(options.folder / "table.json", to_json(results))
    print(to_text(results), end="")  # noqa: T201


def make_studio(options: argparse.Namespace) -> Studio:
    """Raises ValueError for numbers out of range."""
    if not 1 <= options.images <= SEEDS_PER_PROMPT:
        raise ValueError(f"--images must be 1 to {SEEDS_PER_PROMPT}, got {options.images}.")
    if options.pres_pictures < 0:
        raise ValueError(f"--pres-pictures must be 0 or more, got {options.pres_pictures}.")
    method = dict(RECIPES[options.preset].get("method", {}))
    if options.text_encoder is not None:
        method["train_text_encoder"] = options.text_encoder
    return Studio(
        folder=options.folder,
        checkpoint=toy.resolve(options.checkpoint),
        changes=_changes(options),
        method=FullFineTune(**method),
        sampling=_sampling(options),
        identifier=options.identifier,
        num_images=options.images,
        num_class_pictures=options.pres_pictures,
        device=torch.device(options.device),
        discards=options.discard_checkpoints,
    )


def label(options: argparse.Namespace, config: TrainingConfig) -> str:
    """A short description of what was trained."""
    prior = "with" if config.prior.weight else "without"
    return (
        f"{options.checkpoint.name}, {config.steps} steps at {config.optimizer.learning_rate:g}, "
        f"{prior} prior preservation"
    )


def _changes(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of the preset, overridden by the options that were given."""
    recipe = RECIPES[options.preset]
    rate = _first(options.learning_rate, recipe["optimizer"]["learning_rate"])
    return {
        "steps": _first(options.steps, recipe["steps"]),
        "batch_size": _first(options.batch_size, recipe["batch_size"]),
        "optimizer": {"name": options.optimizer, "learning_rate": rate},
        "prior": _prior(options, recipe.get("prior", {})),
        "seed": options.seed,
        "precision": options.precision,
        "gradient_checkpointing": options.gradient_checkpointing,
        "dataset": {"resolution": options.resolution},
    }


def _prior(options: argparse.Namespace, recipe: dict[str, Any]) -> dict[str, Any]:
    """The settings of the class images, which are sampled like all other images. If only their
    number is given, the weight is 1. Raises ValueError for a weight without class images."""
    number, weight = options.class_images, options.prior_weight
    if number == 0 and weight:
        raise ValueError(
            f"--prior-weight is {weight:g}, but --class-images is 0. Give one of the two alone."
        )
    usual = 0.0 if number == 0 else recipe.get("weight", 1.0 if number else 0.0)
    return {
        "weight": _first(weight, usual),
        "num_images": number or recipe.get("num_images", PriorConfig().num_images),
        "sampling": dataclasses.replace(_sampling(options), seed=0),
    }


def _first(given: Any, otherwise: Any) -> Any:
    return otherwise if given is None else given


def _sampling(options: argparse.Namespace) -> SamplingConfig:
    return SamplingConfig(
        scheduler=options.scheduler,
        steps=options.sampling_steps,
        guidance_scale=options.guidance_scale,
        seed=options.seed,
        batch_size=options.drawing_batch,
    )


if __name__ == "__main__":
    sys.exit(main())
