"""Measures one run from photos to a file: the time of each part and the peak memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer, StepReport
from trainer.settings.config import OutputConfig, PreviewConfig, PriorConfig, SamplingConfig

from .bench import GB, Bench, Memory
from .training import CLASS, CLASS_PROMPT, PROMPT, Setting

SETTING = Setting(
    trains=CLASS, batch_size=1, precision="bf16", optimizer="AdamW8bit", gradient_checkpointing=True
)
STEPS = 10
NUM_CLASS_IMAGES = 4
WHAT = (
    f"U-Net and text encoder in bf16 with AdamW8bit and gradient checkpointing, batch 1, "
    f"{NUM_CLASS_IMAGES} class images generated first, and previews before and after training"
)
DRAWING = SamplingConfig(steps=10, batch_size=2)
OPENING, LOADING = "opening the run", "loading the model, encoding the first photo"
PARTS = {
    "Encoding photos": "encoding photos and class images",
    "Encoding class images": "encoding photos and class images",
    "Class images": "generating class images",
    "Sampling": "previews",
}
"""The parts by the run's own names of its activities."""


class _Clock(Observer):
    """Measures the seconds of each part of a run."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def mark(self, part: str) -> None:
        """Count the time since the last mark for this part."""
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def on_load(self, path: object) -> None:
        self.mark(OPENING)

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self.mark(PARTS[activity] if len(self.seconds) > 1 else LOADING)

    def on_start(self, total_steps: int) -> None:
        self.mark("before the first step")

    def on_step(self, report: StepReport) -> None:
        self.mark("steps")

    def wants_to_finish(self) -> bool:
        return time.monotonic() > self._deadline


def run_whole(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield one row."""
    config = replace(
        SETTING.config(bench.checkpoint, bench.shape.resolution),
        prior=PriorConfig(
            weight=1.0, prompt=CLASS_PROMPT, num_images=NUM_CLASS_IMAGES, sampling=DRAWING
        ),
        preview=PreviewConfig(prompts=(PROMPT,), every=STEPS, sampling=DRAWING),
        output=OutputConfig(folder=bench.folder / "out", name="random"),
        steps=STEPS,
    )
    config = replace(config, dataset=replace(config.dataset, photos=(bench.photos,)))
    taken, clock = Memory(bench.device), _Clock(deadline)
    result = train(
        config, FullFineTune(train_text_encoder=True), device=bench.device, observer=clock,
        runs=bench.folder / "runs",
    )  # fmt: skip
    clock.mark("writing the checkpoint")
    yield {
        "what": WHAT,
        "seconds": clock.seconds,
        "steps": result.steps,
        "reported": result.reports[-1].peak_megabytes * 2**20 / GB,
        "file": result.checkpoint.stat().st_size / GB,
        **taken.peaks(),
    }


def describe(row: dict[str, Any]) -> str:
    """The row as one line."""
    total = sum(row["seconds"].values())
    parts = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in row["seconds"].items())
    return f"{total:.1f} s: {parts}; {row['reported']:.2f} GB at peak, as the run itself reports"
