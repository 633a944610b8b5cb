"""Runs diffusers' DreamBooth script with the same settings as ours. The user provides the script;
none of it is here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .bench import NUM_PHOTOS, ROOT, Bench, LeftOut, OutOfTime, release, within
from .random_model import write_folder
from .training import CLASS, CLASS_PROMPT, PROMPT, TEXT, UNET, Setting

NEVER = 100_000
"""The number of steps that the script is told to make. It is stopped once enough of them are timed,
before it writes its result."""
SETTINGS = [
    Setting(trains=trains, batch_size=batch_size, precision="bf16", optimizer="AdamW8bit",
            gradient_checkpointing=True)
    for trains, batch_size in [(UNET, 4), (UNET, 1), (TEXT, 4), (CLASS, 4)]
]  # fmt: skip
TAIL = 5
"""The number of lines shown of a script that failed."""


def run_reference(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each of SETTINGS. Raises LeftOut if there is no script."""
    if bench.reference is None:
        raise LeftOut("diffusers' train_dreambooth.py was not given (--reference FILE)")
    model = bench.reference_model or bench.folder / "reference"
    if not model.exists():
        write_folder(bench.networks(), model)
    release(bench.device)  # the script needs the memory
    for setting in within(deadline, SETTINGS):
        yield {**asdict(setting), **_measure(setting, bench, model, deadline)}


def _measure(setting: Setting, bench: Bench, model: Path, deadline: float) -> dict[str, Any]:
    figures = bench.folder / "reference.json"
    figures.unlink(missing_ok=True)
    command = [
        sys.executable, "-m", "benchmarks.gpu.watched_script", str(figures), str(bench.reference),
        *arguments(setting, bench, model),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=max(0.0, deadline - time.monotonic()),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OutOfTime from None
    if not figures.exists():
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return {"error": "the script ended early: " + " / ".join(lines[-TAIL:])}
    found: dict[str, Any] = json.loads(figures.read_text("utf-8"))
    return found


def arguments(setting: Setting, bench: Bench, model: Path) -> list[str]:
    """The script's arguments for a setting, and a model folder in diffusers' layout."""
    options: dict[str, object] = {
        "pretrained_model_name_or_path": model.resolve(),
        "instance_data_dir": bench.photos,
        "instance_prompt": PROMPT,
        "output_dir": bench.folder / "reference-out",
        "resolution": bench.shape.resolution,
        "train_batch_size": setting.batch_size,
        "mixed_precision": "no" if setting.precision == "fp32" else setting.precision,
        "learning_rate": setting.config(model, bench.shape.resolution).optimizer.learning_rate,
        "lr_scheduler": "constant",
        "lr_warmup_steps": 0,
        "max_train_steps": NEVER,
        "checkpointing_steps": NEVER,
        "seed": 0,
    }
    if setting.trains == CLASS:
        options |= {
            "class_data_dir": bench.class_images,
            "class_prompt": CLASS_PROMPT,
            "num_class_images": NUM_PHOTOS,
        }
    flags = {
        "use_8bit_adam": setting.optimizer == "AdamW8bit",
        "gradient_checkpointing": setting.gradient_checkpointing,
        "train_text_encoder": setting.trains == TEXT,
        "with_prior_preservation": setting.trains == CLASS,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return words + [f"--{name}" for name, is_on in flags.items() if is_on]
