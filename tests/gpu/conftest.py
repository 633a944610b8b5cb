"""Tests that compare a CUDA device with the CPU. Without a CUDA device they are skipped.

Tolerances: in fp32 the device only rounds in another order, but AdamW amplifies the difference
where a gradient is close to 0. Convolutions in TF32, fp16 and bf16 change the losses of these runs
by up to 0.03 %, 0.02 % and 0.07 % of the CPU's; another seed changes them by 5 %."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer import families
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing
from trainer.loop import number_formats, train
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
    """The CUDA device. Skips the test if there is none."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch TF32 off, so that the device differs from the CPU only by rounding."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def config(
    tiny_checkpoint: Path, draw_photos: Callable[..., Path], tmp_path: Path
) -> TrainingConfig:
    """Four steps on three photos, without class images."""
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(
            photos=(draw_photos(tmp_path / "photos", 3, side=32),),
            prompt="a photo of sks dog",
            resolution=32,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog", dtype="fp32"),
        steps=4,
        batch_size=2,
    )


@pytest.fixture
def prior(draw_photos: Callable[..., Path], tmp_path: Path) -> PriorConfig:
    """Prior preservation with existing class images."""
    folder = draw_photos(tmp_path / "class", 4, side=32, seed=1)
    return PriorConfig(weight=0.5, prompt="a photo of a dog", images=(folder,))


@pytest.fixture
def run() -> Callable[..., TrainingResult]:
    """Trains on a device. Other keyword arguments are options of `FullFineTune`."""
    return _run


@pytest.fixture
def open_session() -> Callable[[TrainingConfig, torch.device], Session]:
    """Opens a new session on a device. Its random latents are the same each time."""
    return _open_session


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
    method = FullFineTune()
    formats = number_formats(config, method)
    model = families.load(config.base, device, formats=formats)
    trainable = method.attach(model, config, [])
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
