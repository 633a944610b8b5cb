"""Reference numbers of a few short runs of the toy model, which may change only together with the
numerics version. They are in numerics.json;

    python -m tests.trainer.runs.test_numerics

writes the current numbers. Differences by rounding, between processors or library versions, are
tolerated."""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer import toy
from trainer.families.constants import CONSTANTS_KEY
from trainer.loop import TrainingResult, train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.settings.config import DatasetConfig, OutputConfig, TrainingConfig

GOLDEN = Path(__file__).with_name("numerics.json")
COMMAND = "python -m tests.trainer.runs.test_numerics"
Numbers = dict[str, list[float]]
RELATIVE = 1e-4
"""Relative tolerance. The largest difference observed between torch 2.5 and 2.14, and between
processors with and without AVX, is 2.4e-5."""


@dataclass(frozen=True)
class Case:
    """A run of a few steps, with settings so strong that each of them affects the numbers."""

    changes: dict[str, Any]
    method: Method = field(default_factory=FullFineTune)
    prompt: str = "a photo of sks cup"
    is_v_prediction: bool = False
    max_turn: float = 3e-3
    """Absolute tolerance of the components of directions, which are about 1. The largest difference
    observed is a tenth of it."""


CASES = {
    "U-Net": Case({
        "dataset": {"mirror": True, "crop": "random"},
        "optimizer": {"weight_decay": 5.0, "max_grad_norm": 0.1, "lr_schedule": "cosine"},
    }),
    "everything": Case(
        {
            "prior": {
                "weight": 0.7, "prompt": "a photo of a cup", "num_images": 3, "ratio": 1.5,
                "sampling": {"steps": 10},
            },
            "optimizer": {"lr_schedule": "linear", "warmup_steps": 2},
            "ema": True, "ema_decay": 0.28, "min_snr_gamma": 0.5, "noise_offset": 0.3,
            "gradient_accumulation": 2, "batch_size": 1,
        },
        FullFineTune(
            train_text_encoder=True, text_encoder_learning_rate=1e-4, text_encoder_stop_step=3
        ),
    ),
    "velocity": Case({"min_snr_gamma": 0.5, "dataset": {"buckets": True}}, is_v_prediction=True),
    "textual inversion": Case(
        {"optimizer": {"learning_rate": 0.05}},
        TextualInversion(placeholder="<cup>", initializer="red cup", num_vectors=3),
        prompt="a photo of <cup>",
    ),
    "Adafactor": Case({"optimizer": {"name": "Adafactor", "weight_decay": 0.5}}),
    "Prodigy": Case({
        "optimizer": {
            "name": "Prodigy", "learning_rate": 1.0, "weight_decay": 0.5, "warmup_steps": 2,
        },
    }),
    "Lion": Case(
        {"optimizer": {"name": "Lion", "learning_rate": 1e-4, "weight_decay": 0.5}},
        max_turn=0.05,  # Lion uses only the signs of gradients, which rounding can change
    ),
}  # fmt: skip
PARTS = {"U-Net": "model.diffusion_model.", "text encoder": "cond_stage_model.", "vectors": "clip_"}
"""Name prefixes of their tensors in files."""


def measure(case: Case, folder: Path) -> Numbers:
    """Losses, gradient norms, and the length and direction of the weights' change."""
    config = TrainingConfig(
        base=_base(folder, is_v_prediction=case.is_v_prediction),
        dataset=DatasetConfig(photos=_photos(folder), prompt=case.prompt, resolution=32),
        output=OutputConfig(folder=folder, name="golden", dtype="fp32"),
    ).replace({"steps": 4, "batch_size": 2, "optimizer": {"learning_rate": 1e-3}})
    result = train(config.replace(case.changes), case.method, device=torch.device("cpu"))
    return dict(_numbers(result, config.base))


def _base(folder: Path, *, is_v_prediction: bool) -> Path:
    """The toy model, declared to predict noise or velocity."""
    if not is_v_prediction:
        return toy.MODEL
    path = folder / "velocity.safetensors"
    constants = '{"vae_norm_groups": 8, "resolution": 64}'
    metadata = {CONSTANTS_KEY: constants, "modelspec.prediction_type": "v"}
    save_file(load_file(toy.MODEL), path, metadata)
    return path


def _photos(folder: Path) -> tuple[Path, ...]:
    """The sample photos in several shapes, as BMP, whose bytes are the same on every system: random
    crops are derived from them."""
    paths = []
    for number, path in enumerate(sorted(toy.PHOTOS.glob("*.png"))):
        with Image.open(path) as image:
            paths.append(folder / f"{number}.bmp")
            image.crop((0, 0, 64 - 8 * (number % 3), 48 + 16 * (number % 2))).save(paths[-1])
    return tuple(paths)


def _numbers(result: TrainingResult, base: Path) -> Iterator[tuple[str, list[float]]]:
    yield "losses", [report.loss for report in result.reports]
    if result.reports[0].prior_loss is not None:
        yield "losses of class images", [report.prior_loss for report in result.reports]
    yield "gradients' norms", [report.grad_norm for report in result.reports]
    (path,) = result.files.values()
    before, after = load_file(base), load_file(path)
    for part, start in PARTS.items():
        changes = [
            tensor.double() - (before[name].double() if name in before else 0)
            for name, tensor in sorted(after.items())
            # The gradient of a bias in front of a norm is nothing but rounding.
            if name.startswith(start) and tensor.ndim > 1
        ]
        if any(change.any() for change in changes):
            yield from _movement(part, changes)


def _movement(part: str, changes: list[Tensor]) -> Iterator[tuple[str, list[float]]]:
    """The L2 norm of all changes, and their components along four random directions, divided by the
    norm."""
    generator = torch.Generator().manual_seed(0)
    components = torch.zeros(4, dtype=torch.float64)
    for change in changes:
        directions = torch.randn(4, change.numel(), generator=generator)
        components += directions.double() @ change.flatten()
    length = math.sqrt(sum(float(change.square().sum()) for change in changes))
    yield f"{part}, way", [length]
    yield f"{part}, direction", (components / length).tolist()


def differences(found: Numbers, golden: Numbers, max_turn: float) -> list[str]:
    """A message per quantity that differs by more than rounding."""
    if found.keys() != golden.keys():
        return [f"other quantities: {', '.join(found)} instead of {', '.join(golden)}"]
    close = {
        name: pytest.approx(numbers, rel=0, abs=max_turn)
        if name.endswith("direction")
        else pytest.approx(numbers, rel=RELATIVE, abs=0)
        for name, numbers in golden.items()
    }
    return [
        f"{name}: {_shown(found[name])} instead of {_shown(golden[name])}"
        for name in golden
        if found[name] != close[name]
    ]


def _shown(numbers: list[float]) -> str:
    return ", ".join(f"{number:.6g}" for number in numbers)


@pytest.mark.parametrize("name", CASES)
def test_numbers_change_only_with_their_version(name, tmp_path):
    golden = json.loads(GOLDEN.read_text("utf-8"))
    assert golden["version"] == NUMERICS_VERSION, (
        f"The golden numbers are those of numerics version {golden['version']}, and the trainer "
        f"has {NUMERICS_VERSION}. Write its own with '{COMMAND}'."
    )
    case = CASES[name]
    found = differences(measure(case, tmp_path), golden["runs"][name], case.max_turn)
    assert not found, (
        "The same settings now give other numbers than before:\n  "
        + "\n  ".join(found)
        + "\nIf that is not meant, mend the code. If it is, raise NUMERICS_VERSION in "
        f"trainer/runs/numerics.py, so that users hear of it, and write the new numbers with "
        f"'{COMMAND}'."
    )


def _write() -> None:
    runs = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            runs[name] = measure(case, Path(folder))
    golden = {"version": NUMERICS_VERSION, "runs": runs}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    _write()
