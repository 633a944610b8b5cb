"""Clip skip in whole runs: what is trained, recorded, drawn and found again."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer import families
from trainer.cli import commands
from trainer.evaluation.comparison import Axes, Candidate, compare
from trainer.families.base import ModelFamily
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs.results import TrainingResult
from trainer.sampling.class_images import (
    MANIFEST,
    make_class_images,
    warn_of_other_clip_skip,
)
from trainer.sampling.sampler import sample
from trainer.settings.config import (
    ModelOptions,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

CPU = torch.device("cpu")
LAYERS = "cond_stage_model.transformer.text_model.encoder.layers."
FAST = SamplingConfig(scheduler="Euler", steps=2, guidance_scale=2, batch_size=2)


@pytest.fixture
def config(one_photo_config: TrainingConfig) -> TrainingConfig:
    """Two steps of one photo, drawn with the penultimate of the two layers."""
    return replace(one_photo_config, steps=2, clip_skip=2)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def run(config: TrainingConfig, runs: Path | None = None, **options: object) -> TrainingResult:
    return train(config, FullFineTune(**options), device=CPU, runs=runs)


def draw(model: ModelFamily, prompt: str = "a dog") -> np.ndarray:
    return sample(model, [prompt], FAST)[0]


def differ(one: np.ndarray, other: np.ndarray) -> bool:
    return not np.array_equal(one, other)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": True}, {"ema": True}])
def test_layers_that_are_not_used_stay_bit_for_bit(
    config: TrainingConfig, caplog: pytest.LogCaptureFixture, options: dict[str, bool]
) -> None:
    """Also with weight decay and another number format, which would change them."""
    strong = replace(config.optimizer, weight_decay=0.5)
    output = replace(config.output, dtype="fp16")
    with caplog.at_level(logging.WARNING):
        changed = replace(config, optimizer=strong, output=output, **options)
        result = run(changed, train_text_encoder=True)
    before, after = load_file(config.base), load_file(result.checkpoint)
    assert before.keys() == after.keys()
    last = [name for name in before if name.startswith(f"{LAYERS}1.")]
    used = [name for name in before if name.startswith(f"{LAYERS}0.") and "k_proj.bias" not in name]
    assert all(torch.equal(before[name], after[name]) for name in last)
    assert last
    assert not any(torch.equal(before[name].half(), after[name]) for name in used)
    assert used
    assert caplog.records == []


def test_the_gradient_of_a_used_layer_is_that_of_the_penultimate_output(
    config: TrainingConfig,
) -> None:
    """Textual inversion through all layers would learn other vectors."""
    two, one = (
        train(
            replace(config, clip_skip=clip_skip, dataset=replace(config.dataset, prompt="a <x>")),
            TextualInversion(placeholder="<x>", initializer="dog", templates="captions"),
            device=CPU,
        )
        for clip_skip in (2, 1)
    )
    vectors = [load_file(result.embedding)["clip_l"] for result in (two, one)]
    assert not torch.equal(*vectors)
    assert metadata(two.embedding)["dreambooth.clip_skip"] == "2"


def test_the_file_says_with_which_layer_it_was_trained(
    config: TrainingConfig, tmp_path: Path
) -> None:
    base = tmp_path / "others.safetensors"
    save_file(load_file(config.base), base, {**metadata(config.base), "ss_clip_skip": "2"})
    for clip_skip, recorded in ((2, "2"), (None, "1"), (1, "1")):
        result = run(replace(config, base=base, clip_skip=clip_skip))
        found = metadata(result.checkpoint)
        assert (found["ss_clip_skip"], found["dreambooth.clip_skip"]) == (recorded, recorded)
        assert str(families.load(result.checkpoint, CPU).clip_skip) == recorded


def test_a_trained_model_draws_with_its_layer_everywhere(
    config: TrainingConfig, tmp_path: Path
) -> None:
    preview = PreviewConfig(prompts=("a dog",), every=2, sampling=FAST)
    result = run(replace(config, preview=preview))
    trained = result.checkpoint
    with_two, with_one = (
        draw(families.load(trained, CPU, options=ModelOptions(clip_skip=n))) for n in (2, 1)
    )
    assert differ(with_two, with_one)
    assert not differ(result.previews[0], with_two)
    assert not differ(draw(families.load(trained, CPU)), with_two)
    axes = Axes(
        candidates=[
            Candidate(label="as trained", path=trained),
            Candidate(label="last", path=trained, options=ModelOptions(clip_skip=1)),
        ],
        schedulers=["Euler"], steps=[2], prompts=["a dog"],
    )  # fmt: skip
    ours, last = (row.images[0] for row in compare(axes, FAST, device=CPU).rows)
    assert not differ(ours, with_two)
    assert not differ(last, with_one)


def test_an_embedding_draws_with_its_layer(config: TrainingConfig) -> None:
    dataset = replace(config.dataset, prompt="a <x>")
    method = TextualInversion(placeholder="<x>", initializer="dog", templates="captions")
    result = train(replace(config, dataset=dataset), method, device=CPU)
    assert families.load(config.base, CPU, result.embedding).clip_skip == 2
    # DreamBooth afterwards continues with it, without a setting.
    further = run(
        replace(config, dataset=dataset, clip_skip=None, embedding=result.embedding),
        train_embedding=True,
    )
    for path in (further.checkpoint, further.embedding):
        assert metadata(path)["dreambooth.clip_skip"] == "2"


def test_training_further_keeps_the_layer(config: TrainingConfig) -> None:
    first = run(config)
    further = run(replace(config, base=first.checkpoint, clip_skip=None))
    assert metadata(further.checkpoint)["dreambooth.clip_skip"] == "2"


def test_class_images_belong_to_a_layer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    prior = PriorConfig(prompt="a cup", num_images=1, sampling=FAST)

    def make(clip_skip: int | None) -> Path:
        model = families.load(tiny_checkpoint, CPU, options=ModelOptions(clip_skip=clip_skip))
        return make_class_images(model, prior, tmp_path, resolution=16)[0]

    plain, two = make(None), make(2)
    assert make(1) == plain
    assert make(2) == two != plain
    with Image.open(plain) as one, Image.open(two) as other:
        assert differ(np.asarray(one), np.asarray(other))
    # Class images from before the setting existed are found, because nothing names it.
    line = (plain.parent / MANIFEST).read_text("utf-8")
    assert "clip_skip" not in json.loads(line)


def test_class_images_of_a_run_are_drawn_with_its_layer(config: TrainingConfig) -> None:
    prior = PriorConfig(weight=1, prompt="a cup", num_images=1, sampling=FAST)
    run(replace(config, prior=prior))
    (line,) = (path.read_text("utf-8") for path in config.output.folder.rglob(MANIFEST))
    assert json.loads(line)["clip_skip"] == 2


@pytest.mark.parametrize(("drawn", "trained"), [(2, 2), (1, 2), (2, 1), (1, 1)])
def test_class_images_of_another_layer_are_warned_of(
    config: TrainingConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    drawn: int,
    trained: int,
) -> None:
    prior = PriorConfig(weight=1, prompt="a cup", num_images=1, sampling=FAST)
    model = families.load(config.base, CPU, options=ModelOptions(clip_skip=drawn))
    images = make_class_images(model, prior, tmp_path / "class", resolution=16)
    own = replace(prior, images=tuple(images))
    with caplog.at_level(logging.WARNING):
        run(replace(config, prior=own, clip_skip=trained))
    expected = (
        f"The class images in {images[0].parent} were drawn with clip skip {drawn}, but clip skip "
        f"{trained} is trained. Use the same clip_skip for both."
    )
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([] if drawn == trained else [expected])


@pytest.mark.parametrize(("trained", "other"), [(1, 2), (2, 1)])
def test_class_images_of_several_layers_in_one_folder_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, trained: int, other: int
) -> None:
    lines = [{"base_sha256": "x"}, {"base_sha256": "x", "clip_skip": 2}]
    (tmp_path / MANIFEST).write_text("\n".join(map(json.dumps, lines)) + "\n")
    model: Any = SimpleNamespace(clip_skip=trained)
    warn_of_other_clip_skip(model, [tmp_path / "a.png"])
    (message,) = caplog.messages
    assert f"with clip skip {other}, but clip skip {trained} is trained" in message


def test_a_run_is_found_again_however_its_layer_is_said(
    config: TrainingConfig, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    plain = run(replace(config, clip_skip=None), runs)
    assert run(replace(config, clip_skip=1), runs).reused
    assert not run(config, runs).reused
    assert run(config, runs).reused
    assert run(replace(config, clip_skip=None), runs).checkpoint == plain.checkpoint


def test_a_run_from_before_the_setting_is_found(config: TrainingConfig, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    run(replace(config, clip_skip=None), runs)
    (manifest,) = runs.glob("*/manifest.json")
    content = json.loads(manifest.read_text("utf-8"))
    del content["definition"]["clip_skip"]
    manifest.write_text(json.dumps(content), "utf-8")
    manifest.parent.rename(runs / "0123456789abcdef")
    assert run(replace(config, clip_skip=None), runs).reused
    assert run(replace(config, clip_skip=1), runs).reused
    assert not run(config, runs).reused


def test_the_commands_draw_with_the_layer_that_is_asked_for(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    prior = PriorConfig(prompt="a cup", num_images=1, sampling=FAST)
    images = []
    for clip_skip in (None, 2):
        folder = tmp_path / str(clip_skip)
        options = ModelOptions(clip_skip=clip_skip)
        shared = {"device": "cpu", "options": options, "folder": folder}
        commands.Sample(
            checkpoint=tiny_checkpoint, prompts=("a dog",), sampling=FAST, **shared
        ).run()
        with Image.open(folder / "Euler_000.png") as image:
            images.append(np.asarray(image))
        commands.Priors(base=tiny_checkpoint, prior=prior, **shared).run()
        (line,) = (path.read_text("utf-8") for path in folder.rglob(MANIFEST))
        assert json.loads(line).get("clip_skip") == clip_skip
    assert differ(*images)
    for clip_skip, expected in zip((1, 2), images, strict=True):
        model = families.load(tiny_checkpoint, CPU, options=ModelOptions(clip_skip=clip_skip))
        assert not differ(draw(model), expected)
