"""Compare a run of several processes with that of one, on the toy model:

    torchrun --nproc-per-node 2 -m benchmarks.scaling

For each setting, the first process makes 20 steps alone and then together with the others. Prints
the largest relative difference of the losses, the distance of the weights relative to their length,
and the seconds per step and the memory of the first process, alone and together. Fails if a setting
in fp32 differs by more than rounding."""

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
from trainer.hardware import find_device
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.observer import StepReport
from trainer.processes import ALONE, Processes
from trainer.settings.config import TrainingConfig
from trainer.toy import MODEL, PHOTOS, demo

STEPS = 20
BAR = 1e-5
"""The largest difference that counts as rounding."""
SHAPES = "photos of three shapes"
FULL, UNET = demo.METHOD, FullFineTune(train_text_encoder=False)
ALONE_ON_PHOTOS = {"prior": {"weight": 0.0}}
SHARDED = {"sharded": True}
THREE_SHAPES = {"dataset": {"buckets": True}}
LEAN = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}
SETTINGS: dict[str, tuple[Method, Mapping[str, Any]]] = {
    "class images": (FULL, {}),
    "photos alone": (FULL, ALONE_ON_PHOTOS),
    "frozen text encoder": (UNET, {}),
    "text encoder stops after step 2": (
        FullFineTune(train_text_encoder=True, text_encoder_stop_step=2), {},
    ),
    "text encoder stops after step 2, taught": (
        FullFineTune(train_text_encoder=True, text_encoder_stop_step=2),
        {"prior": {"teacher_weight": 1.0, "teacher_ratio": 0.5}},
    ),
    "2 x 2 photos accumulated": (FULL, {"batch_size": 2, "gradient_accumulation": 2}),
    "1 x 4 photos accumulated": (
        FULL, {"batch_size": 1, "gradient_accumulation": 4, **ALONE_ON_PHOTOS},
    ),
    "3 photos, 2 class images": (FULL, {"batch_size": 3, "prior": {"ratio": 0.7}}),
    "moving average": (FULL, {"ema": True}),
    "taught": (FULL, {"prior": {"teacher_weight": 1.0, "teacher_ratio": 0.5}}),
    "pulled back": (FULL, {"optimizer": {"anchor": 3.0}}),
    SHAPES: (FULL, THREE_SHAPES),
    "gradient checkpointing": (FULL, {"gradient_checkpointing": True}),
    "LoRA with dropout and rank masks": (
        LoRA(rank=8, dropout=0.1, min_rank=2, train_text_encoder=True), {},
    ),
    "textual inversion": (
        TextualInversion(placeholder="<cup>", initializer="cup", templates="object"),
        {"optimizer": {"learning_rate": 5e-3}, **ALONE_ON_PHOTOS},
    ),
    "sharded": (FULL, SHARDED),
    "sharded, pulled back": (FULL, {"optimizer": {"anchor": 3.0}, **SHARDED}),
    "sharded, taught": (FULL, {"prior": {"teacher_weight": 1.0, "teacher_ratio": 0.5}, **SHARDED}),
    "sharded, photos alone": (FULL, {**ALONE_ON_PHOTOS, **SHARDED}),
    "sharded, text encoder stops after step 2": (
        FullFineTune(train_text_encoder=True, text_encoder_stop_step=2), SHARDED,
    ),
    "sharded, 1 x 4 photos accumulated": (
        UNET, {"batch_size": 1, "gradient_accumulation": 4, **SHARDED},
    ),
    "sharded, moving average": (FULL, {"ema": True, **SHARDED}),
    f"sharded, {SHAPES}": (FULL, {**THREE_SHAPES, **SHARDED}),
    f"sharded, moving average, pulled back, text encoder stops, {SHAPES}": (
        FullFineTune(train_text_encoder=True, text_encoder_stop_step=2),
        {"ema": True, "optimizer": {"anchor": 3.0}, **THREE_SHAPES, **SHARDED},
    ),
    "sharded, gradient checkpointing": (FULL, {"gradient_checkpointing": True, **SHARDED}),
    "Lion": (FULL, {"optimizer": {"name": "Lion"}}),
    "sharded, Lion": (FULL, {"optimizer": {"name": "Lion"}, **SHARDED}),
    "24 bit, gradients released": (FULL, LEAN),
    "24 bit, gradients gathered": (FULL, {**LEAN, "gradient_release": False}),
}  # fmt: skip

HEADER = """\
| setting | losses | weights | s per step alone | together | MB alone | together |
|---|---|---|---|---|---|---|"""


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
    config: TrainingConfig, method: Method, device: torch.device, group: Processes
) -> tuple[torch.Tensor, torch.Tensor, StepReport]:
    """The losses, all trained weights, and the last step's report."""
    result = train(config, method, device=device, processes=group)
    losses = torch.tensor([report.loss for report in result.reports])
    (file,) = result.files.values()
    tensors = [tensor.flatten().double() for _, tensor in sorted(load_file(file).items())]
    return losses, torch.cat(tensors), result.reports[-1]


def compare(
    name: str, config: TrainingConfig, device: torch.device, group: Processes, folder: Path
) -> bool:
    """Print a row of the table. Return whether the difference is rounding."""
    method, changes = SETTINGS[name]
    if SHAPES in name:
        cut_to_three_shapes(folder)
        config = config.replace({"dataset": {"photos": (folder,)}})
    if isinstance(method, TextualInversion):
        config = config.replace({"dataset": {"prompt": "a photo of <cup>"}})
    config = config.replace(changes)
    losses, weights, alone = run(config, method, device, ALONE)
    others, other_weights, together = run(config, method, device, group)
    loss = ((others - losses).abs() / losses).max()
    distance = (other_weights - weights).norm() / weights.norm()
    seconds = [f"{1 / each.steps_per_second:.2f}" for each in (alone, together)]
    memory = [f"{each.peak_megabytes:.0f}" for each in (alone, together)]
    cells = [name, f"{loss:.1e}", f"{distance:.1e}", *seconds, *memory]
    print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201
    return max(float(loss), float(distance)) < BAR or "24 bit" in name or "Lion" in name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--base", type=Path, default=MODEL, help="default: the toy model")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    device = find_device(processes.own_device() if arguments.device == "cuda" else "cpu")
    group = processes.JoinedProcesses(device)
    if not group.is_leader:
        return processes.follow(group, Follower(group, device))
    with processes.leading(group), tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        config = demo.demo_config(folder / "shared").replace(
            {
                "base": arguments.base,
                "steps": arguments.steps,
                "prior": {"num_images": 12},
                "dataset": {"allow_upscaling": True},
            }
        )
        print(f"{group.size} processes\n\n{HEADER}", flush=True)  # noqa: T201
        found = [compare(each, config, device, group, folder) for each in arguments.only]
    return 0 if all(found) else 1


if __name__ == "__main__":
    sys.exit(main())
