"""Tests on a CUDA device, against the CPU. Without one they are collected and skipped.

Their tolerances: in fp32 a device rounds in another order, which AdamW makes more of where a
gradient is about 0. Convolutions in TF32, fp16 and bf16 move the losses of these runs by up to
0.0003, 0.0002 and 0.0007 of themselves on the CPU; another seed moves them by 0.05."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import families
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.runs.results import TrainingResult
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    TrainingConfig,
)
from trainer.training.session import Session

CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The CUDA device. Skips the test without one."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions without TF32, so that the device differs from the CPU by rounding alone."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def config(tiny_checkpoint: Path, tmp_path: Path) -> TrainingConfig:
    """Four steps on three photos, without class images."""
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(
            photos=(_draw(tmp_path / "photos", count=3, seed=0),),
            prompt="a photo of sks dog",
            resolution=32,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog", dtype="fp32"),
        steps=4,
        batch_size=2,
    )


@pytest.fixture
def prior(tmp_path: Path) -> PriorConfig:
    """With class images that are there already."""
    folder = _draw(tmp_path / "class", count=4, seed=1)
    return PriorConfig(weight=0.5, prompt="a photo of a dog", images=(folder,))


@pytest.fixture
def run() -> Callable[..., TrainingResult]:
    """Trains on a device; options of the method come last."""
    return _run


@pytest.fixture
def open_session() -> Callable[[TrainingConfig, torch.device], Session]:
    """A fresh session on a device, on random latents that are the same each time."""
    return _open_session


def _draw(folder: Path, count: int, seed: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def _run(
    config: TrainingConfig,
    device: torch.device,
    *,
    observer: Any = None,
    runs: Path | None = None,
    load_encoder: Any = None,
    **options: Any,
) -> TrainingResult:
    return train(
        config, FullFineTune(**options), device=device, observer=observer, runs=runs,
        load_encoder=load_encoder,
    )  # fmt: skip


def _open_session(config: TrainingConfig, device: torch.device) -> Session:
    model = families.load(config.base, device)
    trainable = FullFineTune().attach(model, config, [])
    return Session(config, model, trainable, BatchStream(_latents(), {}, config))


def _latents() -> dict[Example, CachedLatents]:
    generator = torch.Generator().manual_seed(0)
    framing = Framing((32, 32), (0, 0), (32, 32))
    return {
        Example(Path(f"{number}.png"), ("a photo of sks dog",)): CachedLatents(
            torch.randn(4, 16, 16, generator=generator), torch.full((4, 16, 16), 0.1), framing
        )
        for number in range(3)
    }
