"""Whole runs in which all folders and files have names of a kind that often breaks programs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from trainer.families.files import CheckpointFile
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

NAMES = {
    "spaces": "my  dog's photos",
    "Korean": "우리 강아지",
    "umlauts": "Bjørn Müller",
    "decomposed": "Bjo\u0308rn",
    "right to left": "כלב",
    "emoji": "🐶👩‍👩‍👧",
    "200 characters": "x" * 200,
    "255 bytes": "강" * 85,
    "a network share": "\\\\server\\share\\dogs",
    "a drive": "C:\\Users\\me",
    "a web address": "https:__host?a=1&b=%2F#c",
    "a shell's characters": "$(touch x);*[a-z]{1,2}~`!|<>\"'",
    "a line end": "one\ntwo",
    "an option": "--steps",
}


UNDECODABLE = b"caf\xe9 \xff".decode("utf-8", "surrogateescape")
"""A name that is not valid UTF-8, as Linux shows for a file that another system wrote."""


@pytest.mark.posix
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_run_succeeds_and_is_found_again(tiny_checkpoint: Path, tmp_path: Path, name: str):
    root = tmp_path / name
    root.mkdir()
    base = shutil.copy(tiny_checkpoint, root / f"{name[:70]}.safetensors")
    assert_runs_once(root, name, base)


@pytest.mark.posix
def test_photos_may_have_names_that_are_not_valid_unicode(tiny_checkpoint: Path, tmp_path: Path):
    assert_runs_once(tmp_path, UNDECODABLE, tiny_checkpoint, output="out")


@pytest.mark.posix
def test_a_checkpoint_whose_name_is_not_valid_unicode_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
):
    path = shutil.copy(tiny_checkpoint, tmp_path / f"{UNDECODABLE}.safetensors")
    with pytest.raises(ValueError) as caught:
        CheckpointFile(path)
    assert str(caught.value) == (
        f"The path {str(path)!r} is not valid Unicode, so the checkpoint cannot be read. "
        "Rename the file or its folder."
    )


def assert_runs_once(root: Path, name: str, base: Path, *, output: str | None = None) -> None:
    """Train with folders and photos of that name twice. The second time reuses the first result."""
    (root / name).mkdir()
    short = name[:70]
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(root / name / f"{short}{number}.png")
    (root / name / f"{short}0.txt").write_text("a photo of 강아지 🐶", "utf-8")
    sampling = SamplingConfig(steps=1, guidance_scale=1)
    config = TrainingConfig(
        base=base,
        dataset=DatasetConfig(photos=(root / name,), prompt="a photo of sks dog"),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        prior=PriorConfig(weight=1, prompt="a dog", num_images=1, sampling=sampling),
        preview=PreviewConfig(prompts=("a dog",), every=1, sampling=sampling),
        output=OutputConfig(folder=root / "out" / (output or name), save_every=1, dtype="fp32"),
        steps=2,
        batch_size=1,
    )

    def run():
        return train(
            config,
            FullFineTune(),
            device=torch.device("cpu"),
            runs=root / "runs" / (output or name),
        )

    first, again = run(), run()
    assert (first.reused, again.reused) == (False, True)
    assert again.checkpoint == first.checkpoint.resolve()
    with safe_open(first.checkpoint, framework="pt") as file:
        images = json.loads(file.metadata()["dreambooth.images"])
    assert images[0]["name"] == f"{short}0.png"
    assert list(root.rglob("*.part")) == []
