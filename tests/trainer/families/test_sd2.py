"""Stable Diffusion 2, compared with diffusers' and transformers' own networks and readers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.families import generations
from trainer import families
from trainer.checkpoint import CheckpointWriter
from trainer.families.files import CheckpointFile
from trainer.families.sd2 import SD2, TELLING_WEIGHT
from trainer.families.tokenizer import ClipTokenizer
from trainer.settings.config import ModelOptions, OutputConfig

CPU = torch.device("cpu")
CAPTIONS = ["a photo of sks dog", "", "a red cup " * 40]


@torch.no_grad()
def test_the_penultimate_layer_with_the_final_norm_is_used(tmp_path):
    networks = generations.build("2")
    tensors = generations.tensors_of("2", networks)
    model = families.load(generations.write(tmp_path / "a.safetensors", "2", tensors=tensors), CPU)
    assert isinstance(model, SD2)
    encoder = networks["text_encoder"]
    ids = ClipTokenizer().encode(CAPTIONS)
    ids = ids.masked_fill((ids == 49407).cumsum(1) > 1, 0)
    layers = getattr(encoder, "text_model", encoder)
    hidden = layers.final_layer_norm(encoder(ids, output_hidden_states=True).hidden_states[-2])
    given = model.encode_captions(CAPTIONS)
    assert hidden.std() > 0.1
    assert (given.hidden - hidden).abs().max() <= 1e-5
    noisy, times = torch.randn(3, 4, 16, 16), torch.tensor([0, 500, 999])
    theirs = networks["unet"](noisy, times, hidden).sample
    assert theirs.std() > 1e-3
    assert (model.predict(noisy, times, given) - theirs).abs().max() <= 1e-5


def test_diffusers_own_readers_find_the_same_weights():
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_open_clip_checkpoint,
    )

    networks = generations.build("2")
    tensors = generations.tensors_of("2", networks)
    unet = convert_ldm_unet_checkpoint(dict(tensors), networks["unet"].config)
    assert unet.keys() == networks["unet"].state_dict().keys()
    assert all(torch.equal(unet[k], v) for k, v in networks["unet"].state_dict().items())
    encoder = networks["text_encoder"]
    found = convert_open_clip_checkpoint(encoder, dict(tensors), "cond_stage_model.model.")
    bare = {k.removeprefix("text_model."): v for k, v in found.items()}
    own = {k.removeprefix("text_model."): v for k, v in encoder.state_dict().items()}
    assert own.keys() <= bare.keys()
    assert all(torch.equal(bare[name], own[name]) for name in own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_load_and_a_save_keep_every_bit(tmp_path, dtype):
    source = generations.write(tmp_path / "sd2.safetensors", "2", dtype=dtype)
    model = families.load(source, CPU)
    trained = {k: v for part in model.parts() for k, v in model.file_tensors(part).items()}
    writer = CheckpointWriter(model.source, OutputConfig(folder=tmp_path / "out"))
    before, after = load_file(source), load_file(writer.save_final(trained, {}))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(before[k].dtype == after[k].dtype for k in before)


def test_the_other_prefix_of_the_text_encoder_is_read(tmp_path):
    tensors = {
        name.replace("cond_stage_model.model.", "conditioner.embedders.0.model."): tensor
        for name, tensor in generations.tensors_of("2").items()
    }
    usual = families.load(generations.write(tmp_path / "usual.safetensors", "2"), CPU)
    path = generations.write(tmp_path / "other.safetensors", "2", tensors=tensors)
    with torch.no_grad():
        found = families.load(path, CPU).encode_captions(CAPTIONS).hidden
        assert torch.equal(found, usual.encode_captions(CAPTIONS).hidden)


@pytest.mark.parametrize(
    ("std", "setting", "is_v", "resolution"),
    [
        (0.08, "auto", False, 512),
        (0.1, "auto", True, 768),
        (0.1, "epsilon", False, 768),
        (0.08, "v", True, 512),
    ],
)
def test_v_prediction_is_told_from_a_weight_as_comfyui_does(
    tmp_path, std, setting, is_v, resolution
):
    """`SD20.model_type` of ComfyUI: `torch.std(weight, unbiased=False) > 0.09`."""
    weight = torch.tensor([-std, std]).repeat(160)
    path = tmp_path / "sd2.safetensors"
    generations.write(path, "2", more={TELLING_WEIGHT: weight}, resolution=512)
    source = CheckpointFile(path)
    source.metadata.clear()
    constants = SD2.read_constants(source, setting)
    assert (constants.is_v_prediction, constants.resolution) == (is_v, resolution)


@pytest.mark.parametrize(
    ("setting", "architecture"),
    [("epsilon", "stable-diffusion-v2-512"), ("v", "stable-diffusion-v2-768-v")],
)
def test_modelspec_has_two_names_for_stable_diffusion_2(tiny_sd2_checkpoint, setting, architecture):
    """Those of the ModelSpec standard, by what the published models predict."""
    options = ModelOptions(prediction_type=setting)
    assert families.load(tiny_sd2_checkpoint, CPU, options=options).architecture == architecture
