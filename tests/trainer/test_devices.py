"""Whatever a user can choose, with the model on a device other than the CPU: nothing mixes devices,
and the numbers are the CPU's. New lines in the product's tables are covered by themselves; for
anything else that is new, `test_nothing_is_left_out` asks."""

import typing
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModelWithProjection,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from tests.trainer.fake_device import CPU, DEVICE, fake_device
from trainer import families, toy
from trainer.__main__ import COMMANDS
from trainer.cli.commands import Demo, Priors, Runs, Sample
from trainer.cli.evaluation_commands import Compare, Score
from trainer.evaluation import encoders
from trainer.families import FAMILIES
from trainer.families.embedding import PLACEHOLDER_KEY
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.precision import DTYPES
from trainer.runs.results import TrainingResult
from trainer.sampling.schedulers import SCHEDULERS
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    ScoringConfig,
    TrainingConfig,
)

CHECKPOINTS = {"Stable Diffusion 1": "tiny_checkpoint"}
"""By the family's name, the fixture with a small checkpoint of it."""
METHODS: dict[type, Method] = {
    FullFineTune: FullFineTune(),
    TextualInversion: TextualInversion(placeholder="<new>", initializer="dog", num_vectors=2),
}
"""Each with its switches off."""
NUMBERS = {"gradient_accumulation": 2, "min_snr_gamma": 5.0, "noise_offset": 0.1}
"""What is off by default and no switch, and what it is set to here."""
ELSEWHERE = {
    # Tested by name below, or at all times.
    "base", "dataset", "embedding", "prior", "optimizer", "preview", "scoring", "output", "steps",
    "batch_size", "precision",
    # Numbers that change no operation.
    "seed", "ema_decay",
    # A compiled U-Net has the same operations, and torch compiles none for this device.
    "compile",
}  # fmt: skip
WORD = "<tok>"
aten = torch.ops.aten
SMALL = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip
SEEING = {**SMALL, "patch_size": 8, "image_size": 32}
CLIP = CLIPConfig(
    vision_config=SEEING, text_config={**SMALL, "vocab_size": 49408}, projection_dim=24
)
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: CLIPModel(CLIP),
    "clip_vision_model": lambda: CLIPVisionModelWithProjection(CLIP.vision_config),
    "vit": lambda: ViTModel(ViTConfig(**SEEING), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**SEEING)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SEEING)),
}
"""What a judge can be, small and with random weights."""


@pytest.fixture(autouse=True)
def computed() -> Iterator[Counter[Any]]:
    """How often the device computed each operation."""
    with fake_device() as counts:
        yield counts


@pytest.fixture(scope="session")
def embedding(tmp_path_factory) -> Path:
    """A learned word of two vectors for the tiny text encoder."""
    path = tmp_path_factory.mktemp("embeddings") / "tok.safetensors"
    vectors = torch.randn(2, 24, generator=torch.Generator().manual_seed(0))
    save_file({"clip_l": vectors}, path, {PLACEHOLDER_KEY: WORD})
    return path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Callable[[str], Path]:
    """Saves one of `ENCODERS` as transformers does."""

    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            ENCODERS[kind]().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(params=FAMILIES, ids=lambda family: family.name)
def config(request, tmp_path) -> TrainingConfig:
    """Two steps on two photos."""
    return TrainingConfig(
        base=request.getfixturevalue(CHECKPOINTS[request.param.name]),
        dataset=DatasetConfig(
            photos=(draw(tmp_path / "photos", 2),), prompt="a photo of sks dog", resolution=16
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", dtype="fp32"),
        steps=2,
        batch_size=1,
    )


@pytest.fixture
def run(computed) -> Callable[..., TrainingResult]:
    """A run on the device."""

    def run(config: TrainingConfig, method: Method, **options: Any) -> TrainingResult:
        computed.clear()
        result = train(config, method, device=DEVICE, **options)
        assert computed[aten.convolution_backward.default] > 0
        return result

    return run


@pytest.fixture
def run_in_two(run, tmp_path) -> Callable[..., TrainingResult]:
    """A run on the device that is stopped after its first step and then goes on."""

    def run_in_two(config: TrainingConfig, method: Method, **options: Any) -> TrainingResult:
        with pytest.raises(KeyboardInterrupt):
            run(config, method, runs=tmp_path / "runs", observer=Stopping(), **options)
        result = run(config, method, runs=tmp_path / "runs", **options)
        assert [report.step for report in result.reports] == [1, 2]
        return result

    return run_in_two


class Stopping(Observer):
    def on_step(self, report):
        raise KeyboardInterrupt


def draw(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(count)
    for number in range(count):
        pixels = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def switches(settings: type) -> list[str]:
    """The settings that are off by default."""
    return [field.name for field in fields(settings) if field.default is False]


def with_word(config: TrainingConfig, embedding: Path) -> TrainingConfig:
    dataset = replace(config.dataset, prompt=f"a photo of {WORD}")
    return replace(config, embedding=embedding, dataset=dataset)


def previews(**sampling: Any) -> PreviewConfig:
    return PreviewConfig(
        prompts=("a red cup", "a dog on the beach"),
        every=1,
        sampling=SamplingConfig(**{"steps": 2, **sampling}),
    )


# -------------------------------------------------------------------- training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(config, run_in_two, name):
    rate = 1.0 if name == "Prodigy" else 1e-3
    config = replace(config, optimizer=OptimizerConfig(name=name, learning_rate=rate))
    run_in_two(config, FullFineTune())


@pytest.mark.parametrize("kind", METHODS)
def test_the_numbers_are_those_of_the_cpu(config, run_in_two, kind, tmp_path):
    on_device = run_in_two(config, METHODS[kind])
    config = replace(config, output=replace(config.output, folder=tmp_path / "cpu"))
    on_cpu = train(config, METHODS[kind], device=CPU)
    for report, other in zip(on_device.reports, on_cpu.reports, strict=True):
        assert report.loss == pytest.approx(other.loss, rel=1e-4)
        assert report.grad_norm == pytest.approx(other.grad_norm, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "switch"),
    [(kind, switch) for kind in METHODS for switch in ["", *switches(kind)]],
)
def test_methods(config, run, embedding, kind, switch):
    options = {switch: True} if switch else {}
    run(with_word(config, embedding), replace(METHODS[kind], **options))


@pytest.mark.parametrize("name", [*NUMBERS, *sorted(set(switches(TrainingConfig)) - ELSEWHERE)])
def test_options(config, run, name):
    run(replace(config, **{name: NUMBERS.get(name, True)}), FullFineTune())


@pytest.mark.parametrize("is_own", [True, False])
def test_class_images(config, run, is_own, tmp_path):
    images = (draw(tmp_path / "class", 3),) if is_own else ()
    sampling = SamplingConfig(steps=2)
    prior = PriorConfig(weight=1.0, prompt="a dog", images=images, num_images=3, sampling=sampling)
    run(replace(config, prior=prior), FullFineTune())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_previews(config, run, scheduler):
    preview = previews(scheduler=scheduler, steps=3)
    # The method that leaves the least to write.
    result = run(replace(config, preview=preview, steps=1), METHODS[TextualInversion])
    assert len(result.previews) == 2


@pytest.mark.parametrize(
    ("method", "text_encoder"),
    [
        (FullFineTune(), CPU),
        (FullFineTune(train_text_encoder=True), DEVICE),
        (METHODS[TextualInversion], DEVICE),
    ],
    ids=["U-Net", "text encoder", "textual inversion"],
)
def test_only_what_steps_need_is_on_the_device(config, run, monkeypatch, method, text_encoder):
    """Also after previews, for which the others come back."""
    models, places = [], []
    load = families.load
    monkeypatch.setattr(families, "load", lambda *args: models.append(load(*args)) or models[-1])

    class Looking(Observer):
        def on_step(self, report):
            (model,) = models
            parts = (model.unet, model.vae, model.text_encoders)
            places.append([{p.device for p in part.parameters()} for part in parts])

    run(replace(config, preview=previews()), method, observer=Looking())
    assert places == [[{DEVICE}, {CPU}, {text_encoder}]] * config.steps


@pytest.mark.parametrize("kind", ENCODERS)
def test_judges(encoder, kind):
    folder = encoder(kind)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8))
    seen = encoders.load(folder, DEVICE).embed_images(images)
    torch.testing.assert_close(seen, encoders.load(folder, CPU).embed_images(images))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("precision", DTYPES)
def test_all_at_once(config, run_in_two, encoder, embedding, kind, precision):
    every = dict.fromkeys(switches(kind), True)
    config = replace(
        with_word(config, embedding),
        **dict.fromkeys(set(switches(TrainingConfig)) - ELSEWHERE, True),
        min_snr_gamma=5.0,
        noise_offset=0.1,
        precision=precision,
        preview=previews(negative_prompt="a cat"),
        scoring=ScoringConfig(class_prompt="a photo of a cup", num_class_images=1),
        output=replace(config.output, save_every=1, state_every=1),
    )
    if kind is FullFineTune:
        sampling = SamplingConfig(steps=2)
        prior = PriorConfig(weight=1.0, prompt="a dog", num_images=1, sampling=sampling)
        config = replace(config, prior=prior)
    judge = toy.JUDGE if precision == "fp32" else encoder("clip")
    result = run_in_two(
        config, replace(METHODS[kind], **every), load_encoder=partial(encoders.load, judge, DEVICE)
    )
    assert [report.step for report in result.scores] == [0, 2]


# -------------------------------------------------------------- other commands


def test_sample(config, embedding, computed, tmp_path):
    Sample(
        checkpoint=config.base,
        prompts=(f"a photo of {WORD}", "a cat"),
        embedding=embedding,
        schedulers=("DDIM", "Euler"),
        sampling=SamplingConfig(steps=2, guidance_scale=1),
        folder=tmp_path,
        device=DEVICE.type,
    ).run()
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert computed[aten.convolution.default] > 0


def test_priors(config, computed, tmp_path):
    sampling = SamplingConfig(steps=2)
    Priors(
        base=config.base,
        prior=PriorConfig(weight=1.0, prompt="a dog", num_images=2, sampling=sampling),
        folder=tmp_path / "class",
        precision="fp16",
        device=DEVICE.type,
    ).run()
    assert len(list((tmp_path / "class").rglob("*.png"))) == 2
    assert computed[aten.convolution.default] > 0


def test_compare(config, encoder, embedding, computed, tmp_path):
    Compare(
        checkpoints=(config.base,),
        prompts=(f"a photo of {WORD}", "a cat"),
        schedulers=("DDIM", "Euler"),
        steps=(2, 3),
        embedding=embedding,
        judge=encoder("clip"),
        photos=config.dataset.photos[0],
        folder=tmp_path / "comparison",
        device=DEVICE.type,
    ).run()
    assert (tmp_path / "comparison" / "scores.json").exists()
    assert computed[aten.convolution.default] > 0


def test_score(config, encoder, computed, tmp_path):
    Score(
        images=config.dataset.photos,
        photos=config.dataset.photos[0],
        judge=encoder("clip"),
        prompts=("a dog",),
        folder=tmp_path / "scores",
        device=DEVICE.type,
    ).run()
    assert (tmp_path / "scores" / "scores.json").exists()
    assert computed[aten.convolution.default] > 0


# ----------------------------------------------------------------- completeness


def test_nothing_is_left_out():
    """Optimizers, schedulers, number formats and switches are taken from the product's tables;
    here is what those tests name themselves."""
    assert {family.name for family in FAMILIES} == set(CHECKPOINTS)
    methods = {
        typing.get_type_hints(command)["method"]: command
        for command in COMMANDS.values()
        if "method" in typing.get_type_hints(command)
    }
    assert set(methods) == set(METHODS)
    # The demo trains and draws with the embedded model; `runs` only lists and deletes files.
    others = {Sample, Priors, Compare, Score, Demo, Runs}
    assert set(COMMANDS.values()) == {*methods.values(), *others}
    assert {*encoders.CLIP_TYPES, *encoders.DINO_TYPES} == set(ENCODERS)
    named = {*switches(TrainingConfig), *NUMBERS, *ELSEWHERE}
    assert {field.name for field in fields(TrainingConfig)} == named
