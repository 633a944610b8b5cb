"""The adapters that a plan counts, against those that a run has."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.trainer.planning.test_plan import MODEL
from trainer import families
from trainer.families.shapes import read_shape
from trainer.methods import lora_training
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.planning import adapters
from trainer.planning.adapters import adapters_of

CPU = torch.device("cpu")


def of_a_run(path: Path, method: LoRA) -> dict[str, list[tuple[str, int, bool]]]:
    """The path, rank and kind of each adapter that is trained, by part."""
    model = families.load(path, CPU)
    made = lora_training.continued(method, model) if method.start else (
        lora_training.new(method, model, seed=0)
    )  # fmt: skip
    found: dict[str, list[tuple[str, int, bool]]] = {}
    for layer, adapter in made.trained.items():
        is_dora = adapter.magnitude is not None
        found.setdefault(layer.part, []).append((layer.path, adapter.rank, is_dora))
    return found


def planned(path: Path, method: LoRA) -> dict[str, list[tuple[str, int, bool]]]:
    found = adapters_of(method, read_shape(path, families.DEFAULT_OPTIONS))
    return {part: [(a.path, a.rank, a.dora) for a in shapes] for part, shapes in found.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rank": 4, "conv_rank": 8, "train_text_encoder": True, "text_encoder_rank": 2},
        {"dora": True, "layers": "attn2, ff.net"},
    ],
)
@pytest.mark.parametrize("kind", ["tiny_checkpoint", "tiny_xl_checkpoint"])
def test_they_are_those_of_a_run(request, kind, options):
    path = request.getfixturevalue(kind)
    assert planned(path, LoRA(**options)) == of_a_run(path, LoRA(**options))


@pytest.mark.parametrize("trains_text", [False, True])
@pytest.mark.parametrize("names", [0, 1])
def test_of_a_lora_that_is_trained_further_the_file_decides(
    tiny_xl_checkpoint, tmp_path, names, trains_text, caplog
):
    """Whether its layers have the names of the checkpoint or of diffusers."""
    layers = families.load(tiny_xl_checkpoint, CPU).lora_layers()
    tensors = {"lora_unet_unknown.lora_down.weight": torch.zeros(1, 2),
               "lora_unet_unknown.lora_up.weight": torch.zeros(2, 1)}  # fmt: skip
    for number, layer in enumerate([*layers[5:25:4], *layers[-3:]]):
        name, ones = layer.names[names], (1,) * (len(layer.shape) - 2)
        if layer.part != "unet":
            name = layer.name
        tensors[f"{name}.lora_down.weight"] = torch.zeros(number + 1, *layer.shape[1:])
        tensors[f"{name}.lora_up.weight"] = torch.zeros(layer.shape[0], number + 1, *ones)
        if number % 2:
            tensors[f"{name}.dora_scale"] = torch.ones(1, layer.shape[1], *ones)
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path)
    method = LoRA(start=path, train_text_encoder=trains_text, train_text_encoder_2=trains_text)
    caplog.set_level(logging.WARNING)
    found = planned(tiny_xl_checkpoint, method)
    assert caplog.messages == [], "the run itself warns of unknown layers"
    assert found == of_a_run(tiny_xl_checkpoint, method)
    assert (len(found) > 1) == trains_text


def test_their_bytes_are_those_of_a_run(tiny_checkpoint):
    method = LoRA(dora=True, conv_rank=4, train_text_encoder=True)
    made = lora_training.new(method, families.load(tiny_checkpoint, CPU), seed=0)
    shape = read_shape(tiny_checkpoint, families.DEFAULT_OPTIONS)
    networks = {"unet": shape.unet, "text_encoder": shape.text_encoders[0]}
    for part, shapes in adapters_of(method, shape).items():
        held = [t for each in made.of(part).values() for t in (*each.parameters(), *each.buffers())]
        assert adapters.num_bytes(networks[part], shapes) == sum(t.nbytes for t in held)
        trained = [p.shape for each in made.of(part).values() for p in each.parameters()]
        assert [p.shape for p in adapters.parameters(networks[part], shapes)] == trained


def test_other_methods_have_none():
    assert adapters_of(FullFineTune(), MODEL) == {}
