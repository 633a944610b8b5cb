"""LoRA against training all weights, on the cup of the demo: `python -m benchmarks.toy_lora`.

Each variant has the learning rates that were best for one seed. LoRAs are also extracted from the
checkpoints. Prints a table of means over the seeds, with the spread, and writes them as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import Peak
from trainer import families
from trainer.conversion.extraction import extract
from trainer.conversion.low_rank import RankRule
from trainer.conversion.pairs import Model
from trainer.methods.base import Method
from trainer.methods.lora import LoRA
from trainer.observer import Observer
from trainer.sampling.sampler import sample
from trainer.settings.config import ModelOptions, OutputConfig
from trainer.settings.presets import LORA_PRESETS
from trainer.toy import MODEL, demo
from trainer.toy.judge import Judge

CPU = torch.device("cpu")
ENERGIES = (0.90, 0.95, 0.99)


@dataclass(frozen=True)
class Variant:
    method: Method
    learning_rate: float


def lora(rank: int, rate: float, **options: Any) -> Variant:
    return Variant(LoRA(**{**LORA_PRESETS["toy"]["method"], "rank": rank, **options}), rate)


ALL_WEIGHTS = "all weights"
VARIANTS = {
    ALL_WEIGHTS: Variant(demo.METHOD, 2e-4),
    "LoRA, rank 4": lora(4, 4e-3, text_encoder_learning_rate=5e-4),
    "LoRA, rank 16": lora(16, 1e-3),
}


def run(variant: Variant, seed: int, folder: Path) -> dict[str, float]:
    """Train and score one variant."""
    changes = {"seed": seed, "optimizer": {"learning_rate": variant.learning_rate}}
    config = demo.demo_config(folder).replace(changes)
    with Peak() as peak:
        started = time.process_time()
        report = demo.run_demo(config, CPU, Observer(), variant.method)
        seconds = time.process_time() - started
    return {
        "subject": report["subject_score_after"],
        "class kept": report["prior_score_after"],
        "file in MB": (folder / report["checkpoint"]).stat().st_size / 1e6,
        "memory in MB": peak.num_bytes / 1e6,
        "CPU seconds": seconds,
    }


def extracted(energy: float, seed: int, folder: Path) -> dict[str, float]:
    """Extract a LoRA from the checkpoint of a seed, and score the base model with it."""
    checkpoint = folder / f"{ALL_WEIGHTS} {seed}" / "sks-cup.safetensors"
    started = time.process_time()
    found = extract(
        Model(MODEL), Model(checkpoint), RankRule(energy=energy),
        OutputConfig(folder=folder, name=f"{energy} {seed}", dtype="fp16"),
    )  # fmt: skip
    seconds = time.process_time() - started
    model = families.load(MODEL, CPU, options=found.options(ModelOptions()))
    judge, repeats = Judge(), demo.SCORED_IMAGES // len(demo.SUBJECT_PROMPTS)
    subject = sample(model, demo.SUBJECT_PROMPTS * repeats, demo.SAMPLING)
    others = sample(model, [demo.CLASS_PROMPT] * demo.SCORED_IMAGES, demo.SAMPLING)
    return {
        "subject": judge.subject_score(subject),
        "class kept": judge.prior_score(others),
        "file in MB": found.path.stat().st_size / 1e6,
        "share kept": found.kept_of_all,
        "median rank": statistics.median(found.ranks),
        "CPU seconds": seconds,
    }


def rows(num_seeds: int, folder: Path) -> Iterator[tuple[str, list[dict[str, float]]]]:
    for name, variant in VARIANTS.items():
        yield name, [run(variant, seed, folder / f"{name} {seed}") for seed in range(num_seeds)]
    for energy in ENERGIES:
        found = [extracted(energy, seed, folder) for seed in range(num_seeds)]
        yield f"extracted, {energy:.0%} of the energy", found


def shown(values: list[float]) -> str:
    digits = 2 if max(values) < 10 else 0
    spread = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ({spread})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--result", type=Path, default=Path("out/toy_lora.json"))
    arguments = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, results in rows(arguments.seeds, Path(folder)):
            found[name] = results
            cells = [f"{key} {shown([result[key] for result in results])}" for key in results[0]]
            print(" | ".join(["", name, *cells, ""]), flush=True)  # noqa: T201
    arguments.result.parent.mkdir(parents=True, exist_ok=True)
    arguments.result.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
