"""Every option that a user can choose, with the model on a device other than the CPU: no operation
mixes devices, and the results match the CPU's.

New optimizers, schedulers, precisions and switches are covered automatically.
`test_nothing_is_left_out` fails for anything else that is new."""

import itertools
import typing
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, get_args

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
from trainer import families, toy, weights
from trainer.cli.commands import Demo, Priors, Runs, Sample
from trainer.cli.conversion_commands import ApplyLora, ExtractLora
from trainer.cli.evaluation_commands import Compare, Score
from trainer.cli.inspect_command import Inspect
from trainer.cli.planning_command import PlanTable
from trainer.cli.program import COMMANDS
from trainer.evaluation import encoders
from trainer.families.base import ModelFamily
from trainer.families.embedding import PLACEHOLDER_KEY
from trainer.families.sd1 import SD1
from trainer.families.sd2 import SD2
from trainer.families.sdxl import SDXL
from trainer.families.stable_diffusion import StableDiffusion
from trainer.loop import train
from trainer.methods.base import Method
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
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
    Weights,
)

CHECKPOINTS = {SD1: "tiny_checkpoint", SDXL: "tiny_xl_checkpoint"}
"""The fixture of a small checkpoint, by family. Stable Diffusion 2 computes nothing of its own."""
WIDTHS = {"clip_l": 24, "clip_g": 32}
"""Of the checkpoints' text encoders."""
METHODS: dict[type, Method] = {
    FullFineTune: FullFineTune(),
    LoRA: LoRA(rank=4, conv_rank=2, dropout=0.25, min_rank=1),
    TextualInversion: TextualInversion(placeholder="<new>", initializer="dog", num_vectors=2),
}
"""Each method with its switches off."""
NUMBERS = {"gradient_accumulation": 2, "min_snr_gamma": 5.0, "noise_offset": 0.1, "clip_skip": 2}
"""Values for the options that are off by default and are not switches."""
COVERED_ELSEWHERE = {
    # Tested below by name, or in every test.
    "base", "dataset", "embedding", "prior", "optimizer", "preview", "scoring", "output", "steps",
    "batch_size", "precision",
    # Numbers that change no operation.
    "seed", "ema_decay",
    # What is read from files, before anything is on the device.
    "vae", "prediction_type", "loras", "lora_strengths",
    # A compiled U-Net has the same operations, and torch cannot compile for this device.
    "compile",
    # In test_lean_steps, because they need other settings.
    "weights", "offload",
    # In test_frozen_weights_in_8_bits, because full training has none.
    "frozen_weights",
    # Several devices: tests/trainer/training/test_sharding.py.
    "sharded",
}  # fmt: skip
PLACEHOLDER = "<tok>"
aten = torch.ops.aten
TRANSFORMER = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip
VISION = {**TRANSFORMER, "patch_size": 8, "image_size": 32}
CLIP = CLIPConfig(
    vision_config=VISION, text_config={**TRANSFORMER, "vocab_size": 49408}, projection_dim=24
)
ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "clip": lambda: CLIPModel(CLIP),
    "clip_vision_model": lambda: CLIPVisionModelWithProjection(CLIP.vision_config),
    "vit": lambda: ViTModel(ViTConfig(**VISION), add_pooling_layer=False),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**VISION)),
    "dinov2_with_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**VISION)),
}
"""A small image encoder of each kind, with random weights."""


@pytest.fixture(autouse=True)
def computed(monkeypatch) -> Iterator[Counter[Any]]:
    """How often the device computed each operation."""
    monkeypatch.setattr("trainer.hardware._available", lambda: [DEVICE.type, "cpu"])
    with fake_device() as counts:
        yield counts


@pytest.fixture
def embedding(family, tmp_path) -> Path:
    """An embedding of two vectors for the text encoders."""
    path = tmp_path / "tok.safetensors"
    generator = torch.Generator().manual_seed(0)
    vectors = {
        spec.name: torch.randn(2, WIDTHS[spec.name], generator=generator)
        for spec in family.text_encoder_specs
    }
    save_file(vectors, path, {PLACEHOLDER_KEY: PLACEHOLDER})
    return path


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Callable[[str], Path]:
    """Saves one of `ENCODERS` as transformers does, and returns its folder."""

    @cache
    def save(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        with torch.random.fork_rng(devices=[]):
            ENCODERS[kind]().save_pretrained(folder)
        return folder

    return save


@pytest.fixture(params=CHECKPOINTS, ids=lambda family: family.name)
def family(request) -> type[StableDiffusion]:
    return request.param


@pytest.fixture
def config(family, request, draw_photos, tmp_path) -> TrainingConfig:
    """Two steps on two photos."""
    return TrainingConfig(
        base=request.getfixturevalue(CHECKPOINTS[family]),
        dataset=DatasetConfig(
            photos=(draw_photos(tmp_path / "photos", 2),),
            prompt="a photo of sks dog",
            resolution=16,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", dtype="fp32"),
        steps=2,
        batch_size=1,
    )


@pytest.fixture
def run(computed) -> Callable[..., TrainingResult]:
    """Trains on the device."""

    def run(config: TrainingConfig, method: Method, **options: Any) -> TrainingResult:
        computed.clear()
        result = train(config, method, device=DEVICE, **options)
        assert computed[aten.convolution_backward.default] > 0
        return result

    return run


@pytest.fixture
def run_in_two(run, tmp_path) -> Callable[..., TrainingResult]:
    """Trains on the device, stops after the first step, and resumes."""

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


def switches(settings: type) -> list[str]:
    """The settings that are off by default."""
    return [field.name for field in fields(settings) if field.default is False]


def with_embedding(config: TrainingConfig, embedding: Path) -> TrainingConfig:
    dataset = replace(config.dataset, prompt=f"a photo of {PLACEHOLDER}")
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
def test_results_match_those_of_the_cpu(config, run_in_two, kind, tmp_path):
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
def test_methods(config, run, embedding, family, kind, switch):
    if switch == "train_text_encoder_2" and len(family.text_encoder_specs) == 1:
        pytest.skip("this family has one text encoder")
    options = {switch: True} if switch else {}
    run(with_embedding(config, embedding), replace(METHODS[kind], **options))


@pytest.mark.parametrize(
    "name", [*NUMBERS, *sorted(set(switches(TrainingConfig)) - COVERED_ELSEWHERE)]
)
def test_options(config, run, name):
    run(replace(config, **{name: NUMBERS.get(name, True)}), FullFineTune())


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if OPTIMIZERS[name].is_per_weight])
@pytest.mark.parametrize("weights", get_args(Weights))
def test_lean_steps(config, run_in_two, name, weights):
    """The optimizer's state and the rests of the weights are in main memory between steps."""
    config = replace(
        config,
        optimizer=OptimizerConfig(name=name, learning_rate=1e-3),
        precision="bf16",
        weights=weights,
        gradient_release=True,
        offload=True,
        ema=True,
        channels_last=True,
    )
    run_in_two(config, FullFineTune(train_text_encoder=True))


@pytest.mark.parametrize("dora", [False, True])
def test_frozen_weights_in_8_bits(config, run, dora):
    config = replace(config, frozen_weights="8 bit", precision="bf16", preview=previews())
    assert len(run(config, replace(METHODS[LoRA], dora=dora)).previews) == 2


@pytest.mark.parametrize("is_own", [True, False])
def test_class_images(config, run, draw_photos, is_own, tmp_path):
    images = (draw_photos(tmp_path / "class", 3, seed=1),) if is_own else ()
    sampling = SamplingConfig(steps=2)
    prior = PriorConfig(weight=1.0, prompt="a dog", images=images, num_images=3, sampling=sampling)
    run(replace(config, prior=prior), FullFineTune())


def test_masks(config, run_in_two, tmp_path):
    mask = Image.new("L", (16, 16))
    mask.paste(255, (2, 3, 9, 12))
    mask.save(tmp_path / "photos" / "0-mask.png")
    run_in_two(config.replace({"dataset": {"random_backgrounds": 2}}), FullFineTune())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_previews(config, run, scheduler):
    preview = previews(scheduler=scheduler, steps=3)
    # Textual inversion writes the smallest files.
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
    """Also after previews, which bring the other networks to the device."""
    models, places = [], []
    load = families.load
    monkeypatch.setattr(
        families,
        "load",
        lambda *args, **options: models.append(load(*args, **options)) or models[-1],
    )

    class Watching(Observer):
        def on_step(self, report):
            (model,) = models
            parts = (model.unet, model.vae, model.text_encoders)
            places.append([{p.device for p in part.parameters()} for part in parts])

    run(replace(config, preview=previews()), method, observer=Watching())
    assert places == [[{DEVICE}, {CPU}, {text_encoder}]] * config.steps


@pytest.mark.parametrize(
    ("method", "at_steps"),
    [
        (FullFineTune(), {"unet"}),
        (FullFineTune(train_text_encoder=True), {"unet", "text_encoders"}),
        (METHODS[TextualInversion], {"unet", "text_encoders"}),
    ],
    ids=["U-Net", "text encoder", "textual inversion"],
)
def test_networks_are_on_the_device_only_while_they_work(
    config, run, monkeypatch, method, at_steps
):
    """Before the first step the U-Net stays away from photos and prompts. A frozen text encoder
    does not come back after it."""
    found: dict[tuple[str, bool], list[set[str]]] = defaultdict(list)
    for family, call in itertools.product(
        CHECKPOINTS, ("encode_pixels", "encode_captions", "predict", "decode_latents")
    ):
        monkeypatch.setattr(family, call, watched(getattr(family, call), found))
    if isinstance(method, FullFineTune):
        prior = PriorConfig(
            weight=1.0, prompt="a dog", num_images=1, sampling=SamplingConfig(steps=1)
        )
        config = replace(config, prior=prior)
    run(replace(config, preview=previews(steps=1)), method)
    assert found["predict", True]
    drawing = {"unet", "vae"}
    allowed = {
        ("encode_pixels", False): [{"vae"}],
        ("encode_captions", False): [{"text_encoders"}, at_steps],  # at_steps: of previews
        ("encode_captions", True): [at_steps],
        ("predict", False): [drawing, drawing | at_steps],
        ("predict", True): [at_steps],
        ("decode_latents", False): [drawing, drawing | at_steps],
    }
    assert {call for call, places in found.items() if all(p in allowed[call] for p in places)} == {
        *found
    }


def watched(call: Callable[..., Any], found: dict[tuple[str, bool], list[set[str]]]) -> Any:
    """Notes, for each call and whether it is part of a step, which networks are on the device."""

    def watching(model: ModelFamily, *args: Any) -> Any:
        places = {
            name
            for name in ("unet", "vae", "text_encoders")
            if {p.device for p in getattr(model, name).parameters()} == {DEVICE}
        }
        found[call.__name__, torch.is_grad_enabled()].append(places)
        return call(model, *args)

    return watching


@pytest.mark.parametrize("kind", ENCODERS)
def test_image_encoders(encoder, kind):
    folder = encoder(kind)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), np.uint8))
    embedded = encoders.load(folder, DEVICE).embed_images(images)
    torch.testing.assert_close(embedded, encoders.load(folder, CPU).embed_images(images))


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("precision", DTYPES)
def test_all_options_at_once(config, run_in_two, encoder, embedding, family, kind, precision):
    every = dict.fromkeys(switches(kind), True)
    if len(family.text_encoder_specs) == 1:
        every.pop("train_text_encoder_2", None)
    on = set(switches(TrainingConfig)) - COVERED_ELSEWHERE
    on -= {"gradient_release"} if precision == "fp16" else set()
    config = replace(
        with_embedding(config, embedding),
        **dict.fromkeys(on, True),
        min_snr_gamma=5.0,
        noise_offset=0.1,
        optimizer=replace(config.optimizer, anchor=2.0),
        precision=precision,
        preview=previews(negative_prompt="a cat"),
        scoring=ScoringConfig(class_prompt="a photo of a cup", num_class_images=1),
        output=replace(config.output, save_every=1, state_every=1),
    )
    if kind is FullFineTune:
        sampling = SamplingConfig(steps=2)
        prior = PriorConfig(weight=1.0, prompt="a dog", num_images=1, sampling=sampling)
        config = replace(config, prior=prior)
    if kind is not TextualInversion:
        config = config.replace({"prior": {"teacher_weight": 0.5, "prompt": "a dog"}})
    path = toy.JUDGE if precision == "fp32" else encoder("clip")
    result = run_in_two(
        config, replace(METHODS[kind], **every), load_encoder=partial(encoders.load, path, DEVICE)
    )
    assert [report.step for report in result.scores] == [0, 2]


# -------------------------------------------------------------- other commands


def test_sample(config, embedding, computed, tmp_path):
    Sample(
        checkpoint=config.base,
        prompts=(f"a photo of {PLACEHOLDER}", "a cat"),
        embedding=embedding,
        schedulers=("DDIM", "Euler"),
        sampling=SamplingConfig(steps=2, guidance_scale=1),
        folder=tmp_path,
        device=DEVICE.type,
    ).run()
    assert len(list(tmp_path.glob("*.png"))) == 4
    assert computed[aten.convolution.default] > 0


def test_networks_do_not_move_for_each_batch_or_scheduler(config, monkeypatch, tmp_path):
    moves, move = [], weights.move
    monkeypatch.setattr(weights, "move", lambda *args: moves.append(args[1]) or move(*args))
    sampling = SamplingConfig(steps=1, batch_size=1)
    shared = {"prompts": ("a dog", "a cat", "a cup"), "sampling": sampling, "device": DEVICE.type}
    for schedulers in [("DDIM",), ("DDIM", "Euler", "UniPC")]:
        moves.clear()
        Sample(checkpoint=config.base, folder=tmp_path, schedulers=schedulers, **shared).run()
        # U-Net and VAE once, the text encoder once for each scheduler, and back.
        assert moves.count(DEVICE) == moves.count(CPU) == 2 + len(schedulers)


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
        prompts=(f"a photo of {PLACEHOLDER}", "a cat"),
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


def test_a_lora_is_extracted(config, run, computed, tmp_path):
    trained = run(config, FullFineTune()).checkpoint
    output = OutputConfig(folder=tmp_path / "loras")
    computed.clear()
    ExtractLora(base=config.base, trained=trained, output=output, device=DEVICE.type).run()
    assert len(list(output.folder.glob("*.safetensors"))) == 1
    assert computed[aten.mm.default] > 0


# ----------------------------------------------------------------- completeness


def test_nothing_is_left_out():
    """The tests above take optimizers, schedulers, precisions and switches from the trainer's own
    tables. What they name themselves is compared with those tables here."""
    assert set(families.FAMILIES) == {*CHECKPOINTS, SD2}
    methods = {
        typing.get_type_hints(command)["method"]: command
        for command in COMMANDS.values()
        if "method" in typing.get_type_hints(command)
    }
    assert set(methods) == set(METHODS)
    # The demo trains and draws with the embedded model; `runs` only lists and deletes files,
    # `apply-lora` only copies them, `plan` only counts, and `inspect` only reads photos.
    others = {Sample, Priors, Compare, Score, Demo, Runs, PlanTable, ExtractLora, ApplyLora}
    others.add(Inspect)
    assert set(COMMANDS.values()) == {*methods.values(), *others}
    assert {*encoders.CLIP_TYPES, *encoders.DINO_TYPES} == set(ENCODERS)
    named = {*switches(TrainingConfig), *NUMBERS, *COVERED_ELSEWHERE}
    assert {field.name for field in fields(TrainingConfig)} == named
