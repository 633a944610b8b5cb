"""Compare a run of several processes with that of one, on the toy model and the CPU:

    torchrun --nproc-per-node 2 -m benchmarks.scaling

For each setting, the first process makes 20 steps alone and then together with the others. Prints
the largest relative difference of the losses, the distance of the weights relative to their length,
and the seconds per step. Fails if a setting in fp32 differs by more than rounding."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from trainer import processes
from trainer.follower import Follower
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.processes import ALONE, Processes
from trainer.settings.config import TrainingConfig
from trainer.toy import PHOTOS, demo

CPU = torch.device("cpu")
STEPS = 20
BAR = 1e-5
"""The largest difference that counts as rounding."""
SHAPES = "photos of three shapes"
FULL, UNET = demo.METHOD, FullFineTune(train_text_encoder=False)
ALONE_ON_PHOTOS = {"prior": {"weight": 0.0}}
LEAN = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}
SETTINGS: dict[str, tuple[Method, Mapping[str, Any]]] = {
    "class images": (FULL, {}),
    "photos alone": (FULL, ALONE_ON_PHOTOS),
    "frozen text encoder": (UNET, {}),
    "text encoder stops after step 2": (
        FullFineTune(train_text_encoder=True, text_encoder_stop_step=2), {},
    ),
    "2 x 2 photos accumulated": (FULL, {"batch_size": 2, "gradient_accumulation": 2}),
    "1 x 4 photos accumulated": (
        FULL, {"batch_size": 1, "gradient_accumulation": 4, **ALONE_ON_PHOTOS},
    ),
    "3 photos, 2 class images": (FULL, {"batch_size": 3, "prior": {"ratio": 0.7}}),
    "moving average": (FULL, {"ema": True}),
    "taught": (FULL, {"prior": {"teacher_weight": 1.0, "teacher_ratio": 0.5}}),
    "pulled back": (FULL, {"optimizer": {"anchor": 3.0}}),
    SHAPES: (FULL, {"dataset": {"buckets": True, "allow_upscaling": True}}),
    "gradient checkpointing": (FULL, {"gradient_checkpointing": True}),
    "LoRA with dropout and rank masks": (
        LoRA(rank=8, dropout=0.1, min_rank=2, train_text_encoder=True), {},
    ),
    "textual inversion": (
        TextualInversion(placeholder="<cup>", initializer="cup", templates="object"),
        {"optimizer": {"learning_rate": 5e-3}, **ALONE_ON_PHOTOS},
    ),
    "24 bit, gradients released": (FULL, LEAN),
    "24 bit, gradients gathered": (FULL, {**LEAN, "gradient_release": False}),
}  # fmt: skip

HEADER = """\
| setting | losses | weights | s per step alone | together |
|---|---|---|---|---|"""


def cut_to_three_shapes(folder: Path) -> None:
    """Write the toy's photos, some of them cut to be wide or high."""
    for number, path in enumerate(sorted(PHOTOS.glob("*.png"))):
        with Image.open(path) as photo:
            width, height = photo.size
            right, bottom = [(width, height), (width, height // 2), (width // 2, height)][
                number % 3
            ]
            photo.crop((0, 0, right, bottom)).save(folder / path.name)


def run(
    config: TrainingConfig, method: Method, group: Processes
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The losses, all trained weights, and the seconds per step."""
    result = train(config, method, device=CPU, processes=group)
    losses = torch.tensor([report.loss for report in result.reports])
    (file,) = result.files.values()
    tensors = [tensor.flatten().double() for _, tensor in sorted(load_file(file).items())]
    return losses, torch.cat(tensors), 1 / result.reports[-1].steps_per_second


def compare(name: str, steps: int, group: Processes, folder: Path) -> bool:
    """Print a row of the table. Return whether the difference is rounding."""
    method, changes = SETTINGS[name]
    config = demo.demo_config(folder / "shared").replace(
        {"steps": steps, "prior": {"num_images": 12}}
    )
    if name == SHAPES:
        cut_to_three_shapes(folder)
        config = config.replace({"dataset": {"photos": (folder,)}})
    if isinstance(method, TextualInversion):
        config = config.replace({"dataset": {"prompt": "a photo of <cup>"}})
    config = config.replace(changes)
    losses, weights, seconds = run(config, method, ALONE)
    others, other_weights, other_seconds = run(config, method, group)
    loss = ((others - losses).abs() / losses).max()
    distance = (other_weights - weights).norm() / weights.norm()
    cells = [name, f"{loss:.1e}", f"{distance:.1e}", f"{seconds:.2f}", f"{other_seconds:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201
    return max(float(loss), float(distance)) < BAR or "24 bit" in name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    group = processes.JoinedProcesses(CPU)
    if not group.is_leader:
        return processes.follow(group, Follower(group, CPU))
    with processes.leading(group), tempfile.TemporaryDirectory(prefix="scaling-") as folder:
        print(f"{group.size} processes\n\n{HEADER}", flush=True)  # noqa: T201
        found = [compare(each, arguments.steps, group, Path(folder)) for each in arguments.only]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
