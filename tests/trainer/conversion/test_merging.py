"""Checkpoints with LoRAs applied, checked against numbers computed from the files."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conversion.models import (
    GENERATIONS,
    add_low_rank,
    bits,
    changed,
    converted,
    differences,
    metadata_of,
)
from trainer import families
from trainer.conversion.extraction import extract
from trainer.conversion.low_rank import RankRule
from trainer.conversion.merging import merge_once
from trainer.conversion.pairs import Model
from trainer.observer import Observer
from trainer.settings.config import ModelOptions, OutputConfig

FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16,
           "fp8": torch.float8_e4m3fn}  # fmt: skip
QUERY = "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"


@pytest.fixture
def bases(tiny_checkpoint, tiny_sd2_checkpoint, tiny_xl_checkpoint):
    return dict(
        zip(GENERATIONS, (tiny_checkpoint, tiny_sd2_checkpoint, tiny_xl_checkpoint), strict=True)
    )


@pytest.fixture
def output(tmp_path):
    return OutputConfig(folder=tmp_path / "merged", name="merged")


@pytest.fixture
def lora_of(tmp_path):
    """Builds a LoRA of rank 4 from a base model: its path, and the checkpoint that it makes."""

    def build(base, change=None, **metadata):
        trained = changed(
            base, tmp_path / "trained.safetensors", change or add_low_rank(4), **metadata
        )
        folder = OutputConfig(folder=tmp_path / "loras", name="lora", dtype="fp32")
        return extract(Model(base), Model(trained), RankRule(rank=4), folder).path, trained

    return build


def model(base, *loras, **options):
    strengths = tuple(loras[1::2])
    return Model(base, ModelOptions(loras=loras[::2], lora_strengths=strengths, **options))


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("dtype", FORMATS)
def test_changed_weights_are_base_plus_change_and_all_others_are_copied(
    bases, generation, dtype, lora_of, output, tmp_path
):
    lora, trained = lora_of(bases[generation])
    base = converted(bases[generation], tmp_path / "base.safetensors", FORMATS[dtype])
    merged = load_file(merge_once(model(base, lora, 0.5), output).path)
    before, change = load_file(base), differences(bases[generation], trained)
    assert merged.keys() == before.keys()
    for key, tensor in merged.items():
        if key not in change:
            assert tensor.dtype == before[key].dtype, key
            assert torch.equal(bits(tensor), bits(before[key])), key
            continue
        # fp8 is too coarse for a change, so these weights become fp16.
        assert tensor.dtype == (torch.float16 if dtype == "fp8" else FORMATS[dtype]), key
        wanted = before[key].double() + 0.5 * change[key]
        steps = 2 * torch.finfo(tensor.dtype).eps * wanted.abs() + 2e-7
        assert ((tensor.double() - wanted).abs() <= steps).all(), key
        assert not torch.equal(tensor.float(), before[key].float())


@pytest.mark.parametrize("dtype", FORMATS)
def test_thirds_that_no_lora_changes_are_copied(
    tiny_sd2_checkpoint, dtype, lora_of, output, tmp_path
):
    def change(key, tensor):
        if key != QUERY:
            return tensor
        query, keys, values = tensor.chunk(3)
        return torch.cat([query, add_low_rank(4, 0.3)("x.middle_block.weight", keys) + 0.1, values])

    lora, _ = lora_of(tiny_sd2_checkpoint, change)
    base = converted(tiny_sd2_checkpoint, tmp_path / "base.safetensors", FORMATS[dtype])
    merged, before = load_file(merge_once(model(base, lora, 1.0), output).path), load_file(base)
    thirds = zip(before[QUERY].chunk(3), merged[QUERY].chunk(3), strict=True)
    for number, (old, new) in enumerate(thirds):
        assert torch.equal(old.float(), new.float()) == (number != 1)
    del merged[QUERY], before[QUERY]
    assert all(torch.equal(bits(merged[k]), bits(before[k])) for k in before)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_chosen_number_format_is_that_of_the_changed_weights(
    tiny_checkpoint, dtype, lora_of, output
):
    lora, trained = lora_of(tiny_checkpoint)
    found = merge_once(model(tiny_checkpoint, lora, 1.0), replace(output, dtype=dtype))
    change = differences(tiny_checkpoint, trained)
    for key, tensor in load_file(found.path).items():
        assert tensor.dtype == (FORMATS[dtype] if key in change else torch.float32), key


def test_a_strength_of_minus_1_takes_away_what_1_adds(tiny_checkpoint, lora_of, output):
    lora, _ = lora_of(tiny_checkpoint)
    there = merge_once(model(tiny_checkpoint, lora, 1.0), output).path
    back = load_file(merge_once(model(there, lora, -1.0), output).path)
    before, between = load_file(tiny_checkpoint), load_file(there)
    assert max((between[key] - before[key]).abs().max() for key in before) > 1e-3
    assert max((back[key] - before[key]).abs().max() for key in before) < 1e-6
    # Both at once too.
    both = load_file(merge_once(model(tiny_checkpoint, lora, 1.0, lora, -1.0), output).path)
    assert max((both[key] - before[key]).abs().max() for key in before) < 1e-6


def test_the_metadata_name_base_and_loras(tiny_checkpoint, lora_of, output):
    lora, _ = lora_of(
        tiny_checkpoint, **{"modelspec.trigger_phrase": "sks dog", "dreambooth.clip_skip": "2"}
    )
    path = merge_once(model(tiny_checkpoint, lora, 0.5), output).path
    metadata = metadata_of(path)
    base, of_lora = (families.CheckpointFile(each).sha256() for each in (tiny_checkpoint, lora))
    assert {
        "dreambooth.constants": '{"resolution": 16}', "modelspec.title": "merged",
        "modelspec.merged_from": "tiny.safetensors, lora.safetensors",
        "modelspec.trigger_phrase": "sks dog", "dreambooth.clip_skip": "2", "ss_clip_skip": "2",
        "ss_new_sd_model_hash": base, "dreambooth.base_sha256": base,
        "ss_sd_model_name": "tiny.safetensors", "dreambooth.loras": f"{of_lora} 0.5",
    }.items() <= metadata.items()  # fmt: skip
    said = json.loads(metadata["dreambooth.merge"])
    assert said["result"] == {
        "base": "tiny.safetensors", "loras": [{"name": "lora.safetensors", "strength": 0.5}],
    }  # fmt: skip
    # It is read as the model with the LoRA is.
    assert families.default_clip_skip(path) == 2
    assert "modelspec.trigger_phrase" not in metadata_of(tiny_checkpoint)


@pytest.mark.parametrize(
    ("prediction", "said"),
    [("v", {"modelspec.prediction_type": "v"}),
     ("v-zsnr", {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}),
     ("epsilon", {"modelspec.prediction_type": "epsilon"})],
)  # fmt: skip
def test_the_file_says_what_the_model_was_said_to_predict(
    tiny_xl_checkpoint, output, prediction, said
):
    source = model(tiny_xl_checkpoint, prediction_type=prediction)
    path = merge_once(source, output).path
    metadata = metadata_of(path)
    assert {key: metadata[key] for key in metadata if "prediction" in key or "snr" in key} == said
    constants = families.SDXL.read_constants(families.open_model(path))
    assert (constants.is_v_prediction, constants.has_zero_terminal_snr) == (
        prediction != "epsilon", prediction == "v-zsnr"
    )  # fmt: skip
    # ComfyUI reads it from these.
    markers = {"v_pred", "ztsnr"} & load_file(path).keys()
    assert markers == {"epsilon": set(), "v": {"v_pred"}, "v-zsnr": {"v_pred", "ztsnr"}}[prediction]


def test_a_replaced_vae_is_in_the_file(tiny_checkpoint, output, tmp_path):
    other = changed(
        tiny_checkpoint, tmp_path / "vae.safetensors",
        lambda key, t: t + 1 if key.startswith("first_stage_model.") else t,
    )  # fmt: skip
    path = merge_once(model(tiny_checkpoint, vae=other), output).path
    merged, wanted = load_file(path), load_file(other)
    assert all(torch.equal(merged[key], wanted[key]) for key in wanted)
    metadata = metadata_of(path)
    assert metadata["ss_vae_name"] == "vae.safetensors"
    assert metadata["ss_new_vae_hash"] == families.CheckpointFile(other).sha256()


def test_the_same_is_written_once(tiny_checkpoint, lora_of, output):
    lora, _ = lora_of(tiny_checkpoint)
    first = merge_once(model(tiny_checkpoint, lora, 1.0), output)
    assert not first.reused
    again = merge_once(model(tiny_checkpoint, lora, 1.0), replace(output, name="other"))
    assert again == replace(first, reused=True)
    others = [
        merge_once(model(tiny_checkpoint, lora, 0.9), output),
        merge_once(model(tiny_checkpoint), output),
        merge_once(model(tiny_checkpoint, lora, 1.0, clip_skip=2), output),
        merge_once(model(tiny_checkpoint, lora, 1.0), replace(output, dtype="fp16")),
    ]
    assert [found.reused for found in others] == [False] * 4
    assert len({found.path for found in (first, *others)}) == 5


def test_weights_beyond_the_number_format_are_refused(tiny_checkpoint, lora_of, output, tmp_path):
    lora, _ = lora_of(tiny_checkpoint)
    base = converted(tiny_checkpoint, tmp_path / "base.safetensors", torch.float16)
    with pytest.raises(ValueError) as caught:
        merge_once(model(base, lora, 1e8), output)
    assert str(caught.value).startswith("With these LoRAs, the weight '")
    assert str(caught.value).endswith(
        "' of 'base.safetensors' becomes infinite or not a number (NaN) in float16. Lower their "
        "strengths, choose the number format fp32, or check the files."
    )
    assert list(output.folder.iterdir()) == []


def test_progress_counts_tensors(tiny_checkpoint, lora_of, output):
    lora, _ = lora_of(tiny_checkpoint)
    reports = []

    class Listener(Observer):
        def on_progress(self, activity, done, total):
            reports.append((activity, done, total))

    path = merge_once(model(tiny_checkpoint, lora, 1.0), output, Listener()).path
    total = len(load_file(path))
    assert reports == [("Writing", done, total) for done in range(1, total + 1)]
