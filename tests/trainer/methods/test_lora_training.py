"""Whole LoRA runs on tiny checkpoints: the file, its continuation, and runs that are resumed."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer import families
from trainer.data.examples import find_examples
from trainer.families.lora_file import LoraFile
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.observer import Observer
from trainer.settings.config import (
    DatasetConfig,
    ModelOptions,
    OptimizerConfig,
    OutputConfig,
    TrainingConfig,
)
from trainer.training.session import Session

CPU = torch.device("cpu")
EVERYTHING = LoRA(
    rank=4, alpha=2.0, conv_rank=2, min_rank=1, dropout=0.25, dora=True, train_text_encoder=True,
    text_encoder_rank=3, placeholder="<rex>", initializer="dog",
)  # fmt: skip


@pytest.fixture
def config(tiny_checkpoint, draw_photos, tmp_path) -> TrainingConfig:
    """Four steps on three photos."""
    photos = draw_photos(tmp_path / "photos", 3)
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(photos,), prompt="a photo of <rex> dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        output=OutputConfig(folder=tmp_path / "out", name="rex"),
        steps=4,
        batch_size=2,
    )


@pytest.fixture
def trained(monkeypatch):
    """Run, and return the result with the live model as it was at the end."""
    sessions = []
    begin = Session.__init__

    def note(self, *args):
        begin(self, *args)
        sessions.append(self)

    monkeypatch.setattr(Session, "__init__", note)

    def run(config, method, **options):
        result = train(config, method, device=CPU, **options)
        return result, sessions[-1].model

    return run


def prediction(model, captions=("a photo of dog",)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(len(captions), 4, 8, 8, generator=generator)
    with torch.no_grad(), model.on_device(model.text_encoders):
        conditioning = model.encode_captions(list(captions))
        return model.predict(noisy, torch.tensor([500] * len(captions)), conditioning)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    "method", [LoRA(rank=4), replace(EVERYTHING, placeholder="", initializer="")]
)
def test_the_base_model_with_the_file_predicts_what_was_trained(config, trained, method):
    result, live = trained(config, method)
    base = families.load(config.base, CPU)
    loaded = families.load(config.base, CPU, options=ModelOptions(loras=(result.lora,)))
    expected = prediction(live)
    torch.testing.assert_close(prediction(loaded), expected, atol=1e-5, rtol=1e-5)
    assert (prediction(base) - expected).abs().max() > 1e-3
    none = ModelOptions(loras=(result.lora,), lora_strengths=(0.0,))
    assert torch.equal(prediction(families.load(config.base, CPU, options=none)), prediction(base))


def test_the_files_of_a_run_with_a_new_word(config, tmp_path):
    result = train(config, EVERYTHING, device=CPU)
    assert {kind: path.name for kind, path in result.files.items()} == {
        "lora": "rex.safetensors", "embedding": "rex-embedding.safetensors",
    }  # fmt: skip
    options = ModelOptions(loras=(result.lora,))
    model = families.load(config.base, CPU, result.embedding, options)
    assert [*model.learned_vectors] == ["<rex>"]
    assert {*result.moved} == {"unet", "text_encoder", "embedding"}


def test_what_a_file_holds(config, tiny_model):
    """Names, ranks, alphas, number formats and metadata."""
    output = replace(config.output, dtype="fp16")
    result = train(replace(config, output=output), EVERYTHING, device=CPU)
    tensors, layers = load_file(result.lora), tiny_model.lora_layers()
    assert len(tensors) == 4 * len(layers)
    for layer in layers:
        rank = EVERYTHING.rank_of(layer)
        down, up, alpha, norms = (
            tensors[f"{layer.name}.{end}"]
            for end in ("lora_down.weight", "lora_up.weight", "alpha", "dora_scale")
        )
        assert down.dtype == up.dtype == torch.float16
        assert norms.dtype == alpha.dtype == torch.float32
        assert alpha.item() == rank / 2
        assert (len(down), up.shape[1], norms.shape[:2]) == (rank, rank, (1, layer.shape[1]))
    found = metadata(result.lora)
    assert found["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert found["modelspec.trigger_phrase"] == config.dataset.prompt
    assert found["ss_network_module"] == "networks.lora"
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("4", "2")
    assert json.loads(found["ss_network_args"]) == {
        "conv_dim": "2", "conv_alpha": "1", "dora_wd": "True",
    }  # fmt: skip
    assert found["ss_network_dropout"] == "0.25"
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["ss_new_sd_model_hash"] == tiny_model.source.sha256()
    assert json.loads(found["dreambooth.method"])["LoRA"]["rank"] == 4


def test_private_files_hold_no_prompt(config):
    private = replace(config, output=replace(config.output, private=True))
    path = train(private, LoRA(rank=4), device=CPU).lora
    assert b"<rex>" not in path.read_bytes()


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_the_number_format_is_the_base_models_unless_that_is_coarse(
    config, tiny_model, tmp_path, caplog, stored
):
    base = tmp_path / "base.safetensors"
    source = tiny_model.source
    tensors = {name: source.tensor(name).to(stored) for name in source.shapes}
    save_file(tensors, base, metadata=source.metadata)
    with caplog.at_level(logging.WARNING):
        result = train(replace(config, base=base), LoRA(rank=4), device=CPU)
    dtypes = {t.dtype for name, t in load_file(result.lora).items() if "lora_" in name[-20:]}
    assert dtypes == {torch.float16 if stored.itemsize == 1 else stored}
    assert not any("larger" in message for message in caplog.messages)


def test_no_file_is_overwritten_and_intermediate_ones_are_kept(config):
    output = replace(config.output, save_every=1, keep=2)
    names = [
        train(replace(config, output=output, seed=seed), LoRA(rank=4), device=CPU).lora.name
        for seed in (0, 1)
    ]
    assert names == ["rex.safetensors", "rex_00001.safetensors"]
    steps = [path.name for path in config.output.folder.glob("rex-step*.safetensors")]
    assert sorted(steps) == [
        "rex-step000003.safetensors", "rex-step000003_00001.safetensors",
        "rex-step000004.safetensors", "rex-step000004_00001.safetensors",
    ]  # fmt: skip


class StoppedAfter(Observer):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, report):
        if report.step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True, "ema": True}])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(config, tmp_path, changes):
    config = config.replace(changes)
    whole = train(config, EVERYTHING, device=CPU)
    runs = tmp_path / "runs"
    with pytest.raises(KeyboardInterrupt):
        train(config, EVERYTHING, device=CPU, runs=runs, observer=StoppedAfter(2))
    resumed = train(config, EVERYTHING, device=CPU, runs=runs)
    assert [r.loss for r in resumed.reports] == [r.loss for r in whole.reports]
    for kind, path in whole.files.items():
        tensors, others = load_file(path), load_file(resumed.files[kind])
        assert all(torch.equal(tensors[name], others[name]) for name in tensors | others)


def test_checkpointing_only_rounds_differently(config):
    plain, checkpointed = (
        train(config.replace({"gradient_checkpointing": on}), EVERYTHING, device=CPU)
        for on in (False, True)
    )
    losses = [[r.loss for r in result.reports] for result in (plain, checkpointed)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_finished_run_is_found_again(config, tmp_path):
    runs = tmp_path / "runs"
    first, again = (train(config, LoRA(rank=4), device=CPU, runs=runs) for _ in range(2))
    assert (again.reused, again.lora) == (True, first.lora)
    other = train(config, LoRA(rank=4, dropout=0.5), device=CPU, runs=runs)
    assert not other.reused


# --- Training further ---------------------------------------------------------------------------


def test_a_lora_is_trained_further_from_what_it_has_learned(config, trained):
    """With its own ranks and factor, also of the text encoder."""
    method = replace(EVERYTHING, placeholder="", initializer="", dropout=0.0, min_rank=None)
    first, live = trained(config, method)
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    model = families.load(config.base, CPU)
    options = LoRA(start=first.lora, train_text_encoder=True)
    options.attach(model, config, photos)
    torch.testing.assert_close(prediction(model), prediction(live), atol=1e-5, rtol=1e-5)
    second, live = trained(config, options)
    assert second.lora.name == "rex_00001.safetensors"
    before, after = load_file(first.lora), load_file(second.lora)
    assert {name: t.shape for name, t in after.items()} == {n: t.shape for n, t in before.items()}
    assert not torch.equal(prediction(live), prediction(model))
    found = metadata(second.lora)
    assert found["ss_network_dim"] == "4"
    assert found["dreambooth.start_sha256"] == LoraFile(first.lora).sha256()


def test_class_images_are_drawn_with_what_is_trained_further(config, tmp_path):
    """And are not taken for those of the base model."""
    drawing = {"steps": 2, "guidance_scale": 1.0}
    prior = {"weight": 1.0, "num_images": 1, "prompt": "a dog", "sampling": drawing}
    config = config.replace({"prior": prior})
    first = train(config, LoRA(rank=4), device=CPU).lora
    train(config, LoRA(start=first), device=CPU)
    folder = config.output.folder / "class_images"
    images = [path.read_bytes() for path in folder.rglob("*.png")]
    assert len(images) == len({*images}) == 2


def test_what_is_not_trained_further_stays(config, trained, caplog):
    """The text encoder's layers work in training, and are copied."""
    first, _ = trained(config, LoRA(rank=4, train_text_encoder=True))
    model = families.load(config.base, CPU)
    LoRA(start=first.lora).attach(model, config, [])
    whole = families.load(config.base, CPU, options=ModelOptions(loras=(first.lora,)))
    torch.testing.assert_close(prediction(model), prediction(whole), atol=1e-5, rtol=1e-5)
    with caplog.at_level(logging.WARNING):
        second, live = trained(config, LoRA(rank=8, start=first.lora))
    assert caplog.messages[-1] == (
        "'rex.safetensors' is trained further with the layers and ranks that it has, so these "
        "settings have no effect: rank."
    )
    before, after = load_file(first.lora), load_file(second.lora)
    assert before.keys() == after.keys()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("lora_te_")} <= same
    assert not any(name.endswith("up.weight") and "unet" in name for name in same)
    loaded = families.load(config.base, CPU, options=ModelOptions(loras=(second.lora,)))
    torch.testing.assert_close(prediction(loaded), prediction(live), atol=1e-5, rtol=1e-5)


def test_the_file_to_train_further_counts_by_its_content(config, tmp_path):
    first = train(config, LoRA(rank=4), device=CPU).lora
    renamed, other = tmp_path / "renamed.safetensors", tmp_path / "other.safetensors"
    renamed.write_bytes(first.read_bytes())
    tensors = load_file(first)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, other)
    runs = tmp_path / "runs"
    results = [
        train(config, LoRA(start=start), device=CPU, runs=runs) for start in (first, renamed, other)
    ]
    assert [result.reused for result in results] == [False, True, False]


def test_files_that_cannot_be_trained_further_are_refused(config, tiny_model, tmp_path):
    layer = tiny_model.lora_layers()[-1]
    ends = {"lora_down.weight": (2, layer.shape[1]), "lora_up.weight": (layer.shape[0], 2)}
    path = tmp_path / "te.safetensors"
    save_file({f"{layer.name}.{end}": torch.ones(shape) for end, shape in ends.items()}, path)
    with pytest.raises(ValueError) as caught:
        LoRA(start=path).attach(tiny_model, config, [])
    assert str(caught.value) == (
        "'te.safetensors' changes only text encoders. Switch on train_text_encoder to train it "
        "further."
    )
    ends["dora_scale"] = (layer.shape[0], 1)
    save_file({f"{layer.name}.{end}": torch.ones(shape) for end, shape in ends.items()}, path)
    with pytest.raises(ValueError) as caught:
        LoRA(start=path, train_text_encoder=True).attach(tiny_model, config, [])
    assert str(caught.value) == (
        f"The layer '{layer.name}' of 'te.safetensors' has norms by output (DoRA), which cannot be "
        "trained further. Choose another LoRA, or train a new one on top of it (loras)."
    )


# --- On top of others ---------------------------------------------------------------------------


def test_a_lora_is_trained_on_top_of_others(config, trained, tmp_path):
    first, _ = trained(config, LoRA(rank=4))
    on_top = replace(config, loras=(first.lora,), lora_strengths=(0.5,))
    second, live = trained(on_top, LoRA(rank=4, train_text_encoder=True))
    both = ModelOptions(loras=(first.lora, second.lora), lora_strengths=(0.5, 1.0))
    loaded = families.load(config.base, CPU, options=both)
    torch.testing.assert_close(prediction(loaded), prediction(live), atol=1e-5, rtol=1e-5)
    sha256 = LoraFile(first.lora).sha256()
    assert metadata(second.lora)["dreambooth.loras"] == f"{sha256} 0.5"
    runs = tmp_path / "runs"
    method = LoRA(rank=2)
    results = [
        train(replace(config, loras=(first.lora,), lora_strengths=strengths), method, device=CPU,
              runs=runs)
        for strengths in ((0.5,), (0.5,), (1.0,))
    ]  # fmt: skip
    assert [result.reused for result in results] == [False, True, False]


def test_a_checkpoint_is_trained_on_top_of_a_lora(config, trained):
    """It contains the LoRA, also in the text encoder, which is not trained."""
    lora, _ = trained(config, LoRA(rank=4, train_text_encoder=True))
    result, live = trained(replace(config, loras=(lora.lora,)), FullFineTune())
    loaded = families.load(result.checkpoint, CPU)
    torch.testing.assert_close(prediction(loaded), prediction(live), atol=1e-5, rtol=1e-5)
    with_lora = families.load(config.base, CPU, options=ModelOptions(loras=(lora.lora,)))
    for ours, theirs in zip(
        loaded.text_encoders.parameters(), with_lora.text_encoders.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)
