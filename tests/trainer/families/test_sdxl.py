"""Stable Diffusion XL, compared with diffusers' and transformers' own networks and readers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks import toy_xl
from tests.trainer.families import generations
from trainer import families
from trainer.checkpoint import CheckpointWriter
from trainer.families.base import Framing
from trainer.families.sdxl import SDXL
from trainer.families.tokenizer import ClipTokenizer
from trainer.observer import Observer
from trainer.sampling.sampler import sample
from trainer.settings.config import ModelOptions, OutputConfig, SamplingConfig
from trainer.toy import MODEL, demo

CPU = torch.device("cpu")
CAPTIONS = ["a photo of sks dog", "", "a red cup " * 40]
FRAMINGS = [
    Framing((640, 480), (0, 0), (16, 16)),
    Framing((16, 24), (3, 5), (24, 16)),
    Framing((1000, 2000), (0, 700), (16, 16)),
]


@pytest.fixture(scope="module")
def networks() -> dict[str, Any]:
    return generations.build("XL")


@pytest.fixture(scope="module")
def checkpoint(networks: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xl") / "xl.safetensors"
    return generations.write(path, "XL", tensors=generations.tensors_of("XL", networks))


@pytest.fixture
def model(checkpoint: Path) -> SDXL:
    loaded = families.load(checkpoint, CPU)
    assert isinstance(loaded, SDXL)
    return loaded


def encoded_by_transformers(networks: dict[str, Any], captions: list[str]) -> tuple[Tensor, Tensor]:
    """As diffusers' pipeline: the penultimate layers side by side, and the second one's projected
    output. Its tokenizers: the first fills up with the end token, the second with token 0."""
    ids = ClipTokenizer().encode(captions)
    is_padding = (ids == 49407).cumsum(1) > 1
    of_l = networks["text_encoder"](ids, output_hidden_states=True)
    of_g = networks["text_encoder_2"](ids.masked_fill(is_padding, 0), output_hidden_states=True)
    hidden = torch.cat([of_l.hidden_states[-2], of_g.hidden_states[-2]], dim=-1)
    return hidden, of_g.text_embeds


@torch.no_grad()
def test_captions_are_encoded_as_by_diffusers(model, networks):
    ours = model.encode_captions(CAPTIONS)
    hidden, pooled = encoded_by_transformers(networks, CAPTIONS)
    assert hidden.std() > 0.1
    assert (ours.hidden - hidden).abs().max() <= 1e-5
    assert (ours.added["text_embeds"] - pooled).abs().max() <= 1e-5


@torch.no_grad()
def test_the_unet_is_given_pooled_text_and_sizes(model, networks):
    noisy = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    times = torch.tensor([0, 500, 999])
    hidden, pooled = encoded_by_transformers(networks, CAPTIONS)
    # Heights before widths, tops before lefts, as in diffusers' pipeline.
    sizes = torch.tensor([
        [480, 640, 0, 0, 16, 16], [24, 16, 5, 3, 16, 24], [2000, 1000, 700, 0, 16, 16],
    ])  # fmt: skip
    added = {"text_embeds": pooled, "time_ids": sizes}
    theirs = networks["unet"](noisy, times, hidden, added_cond_kwargs=added).sample
    given = model.with_framings(model.encode_captions(CAPTIONS), FRAMINGS)
    assert theirs.std() > 1e-3
    assert (model.predict(noisy, times, given) - theirs).abs().max() <= 1e-5


@torch.no_grad()
def test_latents_are_scaled_as_in_the_published_vae(model, networks):
    pixels = torch.randn(2, 3, 16, 16).clamp(-1, 1)
    moments = networks["vae"].encode(pixels).latent_dist
    mean, std = model.encode_pixels(pixels)
    torch.testing.assert_close(mean, 0.13025 * moments.mean)
    torch.testing.assert_close(std, 0.13025 * moments.std)
    torch.testing.assert_close(
        model.decode_latents(mean), networks["vae"].decode(mean / 0.13025).sample
    )


def test_diffusers_own_readers_find_the_same_weights(networks):
    from diffusers.loaders.single_file_utils import (
        convert_ldm_unet_checkpoint,
        convert_open_clip_checkpoint,
    )

    tensors = generations.tensors_of("XL", networks)
    unet = convert_ldm_unet_checkpoint(dict(tensors), networks["unet"].config)
    assert_same(unet, networks["unet"].state_dict())
    second = networks["text_encoder_2"]
    found = convert_open_clip_checkpoint(second, dict(tensors), "conditioner.embedders.1.model.")
    expected = {k: v for k, v in second.state_dict().items() if k in found}
    assert "text_projection.weight" in found
    assert len(expected) == len(found) == len(second.state_dict())
    assert_same(found, expected)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_load_and_a_save_keep_every_bit(tmp_path, dtype):
    source = generations.write(tmp_path / "xl.safetensors", "XL", dtype=dtype)
    model = families.load(source, CPU)
    trained = {k: v for part in model.parts() for k, v in model.file_tensors(part).items()}
    writer = CheckpointWriter(model.source, OutputConfig(folder=tmp_path / "out"))
    before, after = load_file(source), load_file(writer.save_final(trained, {}))
    assert {k: (v.dtype, v.shape) for k, v in before.items()} == {
        k: (v.dtype, v.shape) for k, v in after.items()
    }
    assert all(torch.equal(before[name], after[name]) for name in before)
    # All but the VAE, what the first text encoder does not use, and what is no weight.
    left_out = before.keys() - trained.keys()
    unused = ("first_stage_model.", "conditioner.embedders.0.transformer.text_model.encoder.layers."
              "2.", "conditioner.embedders.0.transformer.text_model.final_layer_norm.")  # fmt: skip
    assert {name for name in left_out if not name.startswith(unused)} == {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    }


def test_trained_tensors_that_are_stacked_or_transposed_arrive_in_the_file(model, tmp_path):
    with torch.no_grad():
        layer = model.text_encoders[1].text_model.encoder.layers[1].self_attn
        layer.k_proj.weight += 1
        model.text_encoders[1].text_projection.weight[0] += 1
    writer = CheckpointWriter(model.source, OutputConfig(folder=tmp_path / "out"))
    before = load_file(model.path)
    after = load_file(writer.save_final(model.file_tensors("text_encoder_2"), {}))
    start, width = "conditioner.embedders.1.model.", generations.WIDTH_G
    stacked = f"{start}transformer.resblocks.1.attn.in_proj_weight"
    projection = f"{start}text_projection"
    changes = {k: after[k] - before[k] for k in before if not torch.equal(before[k], after[k])}
    assert changes.keys() == {stacked, projection}
    assert torch.equal(
        changes[stacked].round(), torch.cat([torch.full((width, width), n) for n in (0.0, 1, 0)])
    )
    assert changes[projection][:, 0].round().tolist() == [1.0] * width
    assert not changes[projection][:, 1:].any()


@pytest.mark.parametrize(
    ("tensors", "setting", "expected", "written"),
    [
        ((), "auto", (False, False), ()),
        (("v_pred",), "auto", (True, False), ("v_pred",)),
        (("v_pred", "ztsnr"), "auto", (True, True), ("v_pred", "ztsnr")),
        (("v_pred", "ztsnr"), "v", (True, False), ("v_pred",)),
        (("v_pred", "ztsnr"), "epsilon", (False, False), ()),
        ((), "v", (True, False), ("v_pred",)),
        ((), "v-zsnr", (True, True), ("v_pred", "ztsnr")),
    ],
)
def test_what_the_model_predicts_is_read_and_written_as_comfyui_does(
    tmp_path, tensors, setting, expected, written
):
    more = {name: torch.tensor([]) for name in tensors}
    path = generations.write(tmp_path / "xl.safetensors", "XL", more=more)
    model = families.load(path, CPU, options=ModelOptions(prediction_type=setting))
    assert (model.noise.is_v_prediction, model.noise.has_zero_terminal_snr) == expected
    writer = CheckpointWriter(model.source, OutputConfig(folder=tmp_path / "out"))
    after = load_file(writer.save_final({}, {}))
    assert {name for name in ("v_pred", "ztsnr") if name in after} == set(written)


@torch.no_grad()
def test_clip_skip_chooses_the_layer_of_both_encoders(checkpoint, networks):
    ids = ClipTokenizer().encode(["a dog"])
    is_padding = (ids == 49407).cumsum(1) > 1
    for clip_skip in (1, 3):
        model = families.load(checkpoint, CPU, options=ModelOptions(clip_skip=clip_skip))
        found = model.encode_captions(["a dog"])
        of_l = networks["text_encoder"](ids, output_hidden_states=True)
        of_g = networks["text_encoder_2"](ids.masked_fill(is_padding, 0), output_hidden_states=True)
        hidden = [each.hidden_states[-clip_skip] for each in (of_l, of_g)]
        torch.testing.assert_close(found.hidden, torch.cat(hidden, dim=-1))
        torch.testing.assert_close(found.added["text_embeds"], of_g.text_embeds)


def test_the_included_model_widened_to_xl_draws_the_same_and_learns(tmp_path, monkeypatch):
    """A third of the steps of benchmarks/toy_xl.py, without class images."""
    widened = toy_xl.widen(tmp_path / "toy-xl.safetensors")
    sampling = SamplingConfig(steps=4, guidance_scale=4, seed=3)
    drawn = [
        sample(families.load(path, CPU), ["a red cup on the beach"], sampling)[0]
        for path in (MODEL, widened)
    ]
    assert np.array_equal(*drawn)
    monkeypatch.setattr(demo, "SCORED_IMAGES", 12)
    monkeypatch.setattr(demo, "SAMPLING", replace(demo.SAMPLING, steps=8))
    config = demo.demo_config(tmp_path / "out").replace(
        {"base": widened, "steps": 100, "prior": {"weight": 0.0}}
    )
    report = demo.run_demo(config, CPU, Observer(), toy_xl.METHOD)
    assert report["subject_score_before"] <= 0.1
    assert report["subject_score_after"] >= 0.3
    before, after = load_file(widened), load_file(tmp_path / "out" / report["checkpoint"])
    # Pooled text and sizes are used, and the columns for the second text encoder.
    for name in ("label_emb.0.2.weight", "middle_block.1.transformer_blocks.0.attn2.to_k.weight"):
        key = f"model.diffusion_model.{name}"
        assert not before[key][..., -96:].any()
        assert after[key][..., -96:].any()
