"""Measure the memory of training steps on the CPU, on networks of Stable Diffusion 1.5's size with
random weights, or on those of another checkpoint: `python -m benchmarks.memory`.

Each setting runs in its own process, which loads the checkpoint and makes two steps with one photo
of 64 pixels, so that activations hardly count. The peak is the largest memory of the process during
the steps, without files that are mapped, less that before the model was loaded. The estimate is
what `trainer/planning` says. Needs Linux, and 20 GB of memory for the first setting."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.random_model import SD15, build, write_checkpoint
from benchmarks.gpu.training import PROMPT, latents
from trainer import families
from trainer.data.batches import BatchStream
from trainer.families.shapes import NetworkShape, read_shape
from trainer.loop import number_formats
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.planning.estimate import phases
from trainer.planning.job import Job
from trainer.settings.config import DatasetConfig, OptimizerConfig, PriorConfig, TrainingConfig
from trainer.training.session import Session

CPU = torch.device("cpu")
RESOLUTION = 64
INTERVAL = 0.002
"""Seconds between two looks at the memory."""
LEAN = {"precision": "bf16", "gradient_release": True}
TEACHER = PriorConfig(teacher_weight=1.0, prompt="a photo of a dog")
FULL, LORA = FullFineTune(), LoRA()
SETTINGS: dict[str, tuple[Method, Mapping[str, Any], float]] = {
    "fp32, AdamW, gathered": (FULL, {}, 16),
    "fp32, 8-bit AdamW, gathered": (FULL, {"optimizer": "AdamW8bit"}, 10.03),
    "24 bit, 8-bit AdamW, released": (
        FULL, {"weights": "24 bit", "optimizer": "AdamW8bit", **LEAN}, 5.03
    ),
    "the same with an anchor": (
        FULL, {"weights": "24 bit", "optimizer": "AdamW8bit", "anchor": 4.0, **LEAN}, 5.03
    ),
    "the same with a teacher": (
        FULL, {"weights": "24 bit", "optimizer": "AdamW8bit", "prior": TEACHER, **LEAN}, 7.03
    ),
    "bf16, Adafactor without momentum, released": (
        FULL, {"weights": "bf16", "optimizer": "Adafactor without momentum", **LEAN}, 2.01
    ),
    "LoRA of rank 16, bf16, AdamW": (LORA, {"precision": "bf16"}, 2),
    "LoRA of rank 16, 8 bit, AdamW": (
        LORA, {"precision": "bf16", "frozen_weights": "8 bit"}, 1
    ),
}  # fmt: skip
"""Method, changed settings, and the bytes per weight of the U-Net: of weights, gradients and
optimizer state, without those of a LoRA itself."""

HEADER = """\
| weights, optimizer, gradients | peak, GB | estimate | bytes per weight | in theory | s per step |
|---|---|---|---|---|---|"""


def config(
    checkpoint: Path, *, optimizer: str = "AdamW", anchor: float = 0.0, **changes: Any
) -> TrainingConfig:
    dataset = DatasetConfig(photos=(checkpoint,), prompt=PROMPT, resolution=RESOLUTION)
    return TrainingConfig(
        base=checkpoint,
        dataset=dataset,
        optimizer=OptimizerConfig(name=optimizer, anchor=anchor),
        batch_size=1,
        gradient_checkpointing=True,
        **changes,
    )


def estimate(checkpoint: Path, method: Method, changes: Mapping[str, Any]) -> int:
    """The estimate of the steps in bytes."""
    settings = config(checkpoint, **changes)
    shape = read_shape(checkpoint, settings.model_options)
    job = Job(settings, method, shape, on_cuda=False)
    return next(each.total for each in phases(job) if each.when == "training steps")


def measure(
    checkpoint: Path, method: Method, changes: Mapping[str, Any], results: Connection
) -> None:
    """Send the peak memory in bytes above that before loading, the number of weights of the U-Net,
    and the seconds of the second step. Runs in its own process."""
    before, settings = _memory(), config(checkpoint, **changes)
    formats = number_formats(settings, method)
    model = families.load(checkpoint, CPU, formats=formats)
    photos = latents(model, RESOLUTION, PROMPT, is_prior=False)
    stream = BatchStream(photos, {}, settings)
    session = Session(settings, model, method.attach(model, settings, []), stream)
    for parked in (model.text_encoders, model.vae):
        parked.to("meta")  # as if they were off the device
    with Peak() as peak:
        session.step()
        started = time.monotonic()
        session.step()
        seconds = time.monotonic() - started
    num_weights = sum(p.numel() for p in NetworkShape.of_module("unet", model.unet).parameters())
    results.send((peak.num_bytes - before, num_weights, seconds))


class Peak:
    """Watches the memory of this process from a thread."""

    num_bytes = 0

    def __enter__(self) -> Peak:
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_done.wait(INTERVAL):
            self.num_bytes = max(self.num_bytes, _memory())


def _memory() -> int:
    """Bytes of this process that are not mapped from files."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "Linux"
    return int(found[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--checkpoint", type=Path, help="instead of random weights")
    arguments = parser.parse_args()
    # Otherwise glibc keeps freed memory for later, which would count.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**17)
    context = multiprocessing.get_context("spawn")
    print(HEADER)  # noqa: T201
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            checkpoint = Path(folder) / "random.safetensors"
            write_checkpoint(build(SD15, CPU), checkpoint, SD15.resolution)
        for name in arguments.only:
            method, changes, theory = SETTINGS[name]
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=measure, args=(checkpoint, method, changes, theirs))
            process.start()
            theirs.close()
            peak, num_weights, seconds = ours.recv()
            process.join()
            estimated = estimate(checkpoint, method, changes)
            cells = [name, f"{peak / 1e9:.1f}", f"{estimated / 1e9:.1f}"]
            cells += [f"{peak / num_weights:.2f}", f"{theory:.2f}", f"{seconds:.0f}"]
            print(f"| {' | '.join(cells)} |", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
