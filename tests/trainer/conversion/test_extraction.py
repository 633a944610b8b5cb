"""Extracted LoRAs, checked against numpy's decomposition of what differs between the two files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conversion.models import (
    CPU,
    GENERATIONS,
    add_low_rank,
    changed,
    converted,
    differences,
    is_layer,
    is_text,
    low_rank,
    metadata_of,
)
from trainer import families
from trainer.conversion.extraction import extract, extract_once
from trainer.conversion.low_rank import RankRule
from trainer.conversion.merging import merge_once
from trainer.conversion.pairs import Model
from trainer.observer import Observer
from trainer.settings.config import ModelOptions, OutputConfig

EXACT = RankRule(energy=1 - 1e-9)


@pytest.fixture
def bases(tiny_checkpoint, tiny_sd2_checkpoint, tiny_xl_checkpoint):
    return dict(
        zip(GENERATIONS, (tiny_checkpoint, tiny_sd2_checkpoint, tiny_xl_checkpoint), strict=True)
    )


@pytest.fixture
def output(tmp_path):
    return OutputConfig(folder=tmp_path / "loras", name="my-lora", dtype="fp32")


def tensors_with(base, lora, strength=1.0):
    """The tensors of a checkpoint as the model with a LoRA has them."""
    options = ModelOptions(loras=(lora,), lora_strengths=(strength,))
    file = families.open_model(base, options)
    return {key: file.tensor(key) for key in file.shapes}


def noise(key, tensor):
    """Changes of U-Net and text encoders of any rank, and nothing of the VAE."""
    if not (key.startswith("model.diffusion_model.") or is_text(key)) or tensor.ndim == 0:
        return tensor
    generator = torch.Generator().manual_seed(sum(key.encode()))
    return tensor + 0.01 * torch.randn(tensor.shape, generator=generator)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_a_change_of_low_rank_is_found_again(bases, generation, output, tmp_path):
    base = bases[generation]
    trained = changed(base, tmp_path / "trained.safetensors", add_low_rank(4))
    found = extract(Model(base), Model(trained), EXACT, output)
    wanted = load_file(trained)
    for key, tensor in tensors_with(base, found.path).items():
        assert (tensor.double() - wanted[key].double()).abs().max() < 1e-6, key
    tensors = load_file(found.path)
    ranks = [len(tensor) for name, tensor in tensors.items() if name.endswith("down.weight")]
    assert set(ranks) == {4}
    assert found.ranks == (4,) * len(ranks)
    thirds = sum("in_proj_weight" in key for key in wanted)
    num_layers = sum(is_layer(key, tuple(tensor.shape)) for key, tensor in wanted.items())
    assert len(ranks) == num_layers + 2 * thirds  # a fused tensor is three layers
    assert (found.kept, found.kept_of_all) == pytest.approx((1, 1), abs=1e-9)
    assert found.left_out == {}
    assert not found.has_other_vae
    assert {name for name in tensors if not name.startswith(("lora_unet_", "lora_te"))} == set()
    assert any(name.startswith("lora_te") for name in tensors)


@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.parametrize("rule", [RankRule(energy=0.9), RankRule(energy=0.99), RankRule(rank=3)])
def test_the_shares_are_those_of_the_files(bases, generation, rule, output, tmp_path):
    base = bases[generation]
    trained = changed(base, tmp_path / "trained.safetensors", noise)
    found = extract(Model(base), Model(trained), rule, replace(output, dtype="bf16"))
    before, after = load_file(base), load_file(trained)
    result = tensors_with(base, found.path)
    squares = {
        key: change.square().sum().item() for key, change in differences(base, trained).items()
    }
    # What the model does not use does not count.
    unused = ["logit_scale", "0.transformer.text_model.final_layer_norm.weight",
              "0.transformer.text_model.final_layer_norm.bias"]  # fmt: skip
    if generation == "2":
        unused.append("text_projection")
    if generation != "1":
        squares = {key: value for key, value in squares.items() if not key.endswith(tuple(unused))}
    lost = {
        key: (result[key].double() - after[key].double()).square().sum().item() for key in squares
    }
    layers = [key for key in squares if is_layer(key, before[key].shape)]
    total = sum(squares.values())
    kept = 1 - sum(lost[key] for key in layers) / sum(squares[key] for key in layers)
    assert found.kept == pytest.approx(kept, abs=1e-6)
    assert found.kept_of_all == pytest.approx(1 - sum(lost.values()) / total, abs=1e-6)
    others = {key: squares[key] / total for key in squares if key not in layers}
    tokens = sum(share for key, share in others.items() if "token_embedding" in key)
    norms = sum(share for key, share in others.items() if before[key].ndim == 1)
    assert found.left_out["token embeddings"] == pytest.approx(tokens, rel=1e-6)
    assert found.left_out["biases and norms"] == pytest.approx(norms, rel=1e-6)
    assert sum(found.left_out.values()) == pytest.approx(sum(others.values()), rel=1e-6)
    if rule.rank is None:
        assert rule.energy <= found.kept < rule.energy + 0.05


@pytest.mark.parametrize("rule", [RankRule(energy=0.9), RankRule(rank=3)])
def test_each_layer_has_the_rank_that_it_needs(tiny_checkpoint, rule, output, tmp_path):
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", noise)
    found = extract(Model(tiny_checkpoint), Model(trained), rule, output)
    tensors, changes = load_file(found.path), differences(tiny_checkpoint, trained)
    for name, key in {
        "lora_unet_mid_block_attentions_0_proj_in": "model.diffusion_model.middle_block.1.proj_in",
        "lora_unet_conv_in": "model.diffusion_model.input_blocks.0.0",
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj":
            "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj",
        "lora_te_text_model_encoder_layers_1_mlp_fc1":
            "cond_stage_model.transformer.text_model.encoder.layers.1.mlp.fc1",
    }.items():  # fmt: skip
        change = changes[f"{key}.weight"].flatten(1).numpy()
        left, values, right = np.linalg.svd(change, full_matrices=False)
        shares = np.cumsum(values**2) / (values**2).sum()
        rank = rule.rank or int(np.argmax(shares >= rule.energy)) + 1
        down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
        assert len(down) == rank
        assert tensors[f"{name}.alpha"].item() == rank
        best = (left[:, :rank] * values[:rank]) @ right[:rank]
        assert (up.flatten(1) @ down.flatten(1)).numpy() == pytest.approx(best, abs=1e-6)


def test_large_and_small_values_fit_the_number_format(tiny_checkpoint, output, tmp_path):
    """fp16 holds neither the singular values of the first change nor those of the second."""
    for number, size in enumerate((3e3, 3e-6)):
        trained = changed(
            tiny_checkpoint, tmp_path / f"{number}.safetensors", add_low_rank(4, size)
        )
        as_fp16 = replace(output, dtype="fp16", name=f"lora{number}")
        found = extract(Model(tiny_checkpoint), Model(trained), RankRule(rank=4), as_fp16)
        tensors = load_file(found.path)
        assert all(tensor.isfinite().all() for tensor in tensors.values())
        assert found.kept > 0.999


def test_layers_that_did_not_change_are_left_out(tiny_checkpoint, output, tmp_path):
    def change(key, tensor):
        return add_low_rank(2)(key, tensor) if ".middle_block.1." in key else tensor

    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", change)
    found = extract(Model(tiny_checkpoint), Model(trained), EXACT, output)
    names = {
        name.rpartition(".lora_")[0] or name.rpartition(".")[0] for name in load_file(found.path)
    }
    assert all(name.startswith("lora_unet_mid_block_attentions_0") for name in names)
    assert len(names) == len(found.ranks) == 12


@pytest.mark.parametrize("dtypes", [("fp32", "fp16"), ("fp16", "fp32"), ("bf16", "fp16")])
def test_rounding_of_a_coarser_file_is_no_change(tiny_checkpoint, output, tmp_path, dtypes):
    formats = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    base, other = (
        converted(tiny_checkpoint, tmp_path / f"{name}.safetensors", formats[name])
        for name in dtypes
    )
    if "bf16" in dtypes:  # What bf16 and fp16 have in common is bf16's, but for small numbers.
        other = converted(base, other, torch.float16)

    def change(key, tensor):
        return add_low_rank(2, 0.1)(key, tensor) if "middle_block.1.proj_in" in key else tensor

    trained = changed(other, tmp_path / "trained.safetensors", change)
    found = extract(Model(base), Model(trained), RankRule(energy=0.99), output)
    assert found.ranks == (2,)
    assert found.left_out == {}


def test_what_changes_only_weights_that_no_lora_holds_is_refused(tiny_checkpoint, output, tmp_path):
    def change(key, tensor):
        return tensor + 1 if tensor.ndim == 1 or "token_embedding" in key else tensor

    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", change)
    with pytest.raises(ValueError) as caught:
        extract(Model(tiny_checkpoint), Model(trained), EXACT, output)
    assert str(caught.value) == (
        "'trained.safetensors' differs from 'tiny.safetensors' only in biases and norms, VAE, "
        "token embeddings, which a LoRA cannot hold. Use the trained checkpoint itself."
    )


def test_equal_files_are_refused(tiny_checkpoint, output):
    with pytest.raises(ValueError) as caught:
        extract(Model(tiny_checkpoint), Model(tiny_checkpoint), EXACT, output)
    assert str(caught.value) == (
        "All weights of 'tiny.safetensors' equal those of 'tiny.safetensors', so there is nothing "
        "to extract. Choose a trained checkpoint, and the base model that it was trained from."
    )
    assert list(output.folder.iterdir()) == []


def test_an_other_vae_is_reported_apart(tiny_checkpoint, output, tmp_path):
    def change(key, tensor):
        return tensor + 1 if key.startswith("first_stage_model.") else add_low_rank(4)(key, tensor)

    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", change)
    found = extract(Model(tiny_checkpoint), Model(trained), EXACT, output)
    assert found.has_other_vae
    assert found.kept_of_all == pytest.approx(1, abs=1e-9)
    assert found.describe().endswith(
        " The VAEs of the two checkpoints differ as well, which a LoRA cannot hold: use the "
        "trained checkpoint's VAE with it."
    )
    # The same VAE for both.
    options = ModelOptions(vae=trained)
    assert not extract(Model(tiny_checkpoint, options), Model(trained), EXACT, output).has_other_vae


def test_a_description_has_the_shares(tiny_checkpoint, output, tmp_path):
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", noise)
    found = replace(
        extract(Model(tiny_checkpoint), Model(trained), EXACT, output),
        kept=0.9512, kept_of_all=0.5, ranks=(2, 3, 9),
        left_out={"biases and norms": 0.0004, "token embeddings": 0.49},
    )  # fmt: skip
    assert found.describe() == (
        "3 layers of ranks 2 to 9 keep 95.1 % of what training changed in these layers, and 50.0 % "
        "of all that it changed. A LoRA cannot hold biases and norms (less than 0.1 % of the "
        "change), token embeddings (49.0 % of the change)."
    )
    assert replace(found, ranks=(4, 4), kept=0.99999, left_out={}).describe() == (
        "2 layers of rank 4 keep more than 99.9 % of what training changed in these layers, and "
        "50.0 % of all that it changed."
    )


def test_the_metadata_say_what_it_is_and_keep_what_was_trained(bases, output, tmp_path):
    kept = {
        "modelspec.title": "My dog", "modelspec.trigger_phrase": "a photo of sks dog",
        "ss_max_train_steps": "400", "dreambooth.clip_skip": "2",
    }  # fmt: skip
    dropped = {"modelspec.architecture": "stable-diffusion-xl-v1-base",
               "modelspec.hash_sha256": "0x1"}  # fmt: skip
    trained = changed(
        bases["XL"], tmp_path / "trained.safetensors", add_low_rank(4), **kept, **dropped
    )
    base, model = Model(bases["XL"]), Model(trained)
    found = extract(base, model, RankRule(rank=2), replace(output, dtype="fp16"))
    metadata = metadata_of(found.path)
    assert kept.items() <= metadata.items()
    hashes = [families.open_model(path).sha256() for path in (bases["XL"], trained)]
    assert {
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora",
        "ss_network_dim": "2", "ss_network_alpha": "2", "ss_output_name": "my-lora",
        "ss_sd_model_name": "xl.safetensors", "ss_new_sd_model_hash": hashes[0],
        "dreambooth.base_sha256": hashes[0], "dreambooth.trained_sha256": hashes[1],
    }.items() <= metadata.items()  # fmt: skip
    assert {"modelspec.hash_sha256", "dreambooth.constants"}.isdisjoint(metadata)
    said = json.loads(metadata["dreambooth.extraction"])
    assert said["from"] == {
        "base": {"sha256": hashes[0]}, "trained": {"sha256": hashes[1]}, "rule": "rank 2",
        "dtype": "fp16",
    }  # fmt: skip
    assert said["result"]["kept"] == found.kept
    # A private run's checkpoint says nothing of its prompts, and so nor does the LoRA.
    private = changed(bases["XL"], tmp_path / "private.safetensors", add_low_rank(4))
    metadata = metadata_of(extract(base, Model(private), EXACT, output).path)
    assert "modelspec.trigger_phrase" not in metadata
    assert metadata["modelspec.title"] == "my-lora"


def test_the_architecture_of_stable_diffusion_2_says_v(bases, output, tmp_path):
    trained = changed(bases["2"], tmp_path / "trained.safetensors", add_low_rank(4))
    for prediction, architecture in (("epsilon", "512"), ("v", "768-v")):
        options = ModelOptions(prediction_type=prediction)
        found = extract(Model(bases["2"], options), Model(trained, options), EXACT, output)
        assert metadata_of(found.path)["modelspec.architecture"] == (
            f"stable-diffusion-v2-{architecture}/lora"
        )


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16", "as input"])
def test_the_file_has_the_chosen_number_format(tiny_checkpoint, output, tmp_path, dtype):
    base = converted(tiny_checkpoint, tmp_path / "base.safetensors", torch.bfloat16)
    trained = changed(base, tmp_path / "trained.safetensors", add_low_rank(4, 0.1))
    found = extract(Model(base), Model(trained), RankRule(rank=4), replace(output, dtype=dtype))
    formats = {"fp32": torch.float32, "fp16": torch.float16}
    dtypes = {t.dtype for name, t in load_file(found.path).items() if not name.endswith("alpha")}
    assert dtypes == {formats.get(dtype, torch.bfloat16)}
    assert found.kept > 0.9


def test_the_loras_of_a_base_model_are_not_extracted_again(tiny_checkpoint, output, tmp_path):
    first = changed(tiny_checkpoint, tmp_path / "first.safetensors", add_low_rank(4))
    lora = extract(Model(tiny_checkpoint), Model(first), EXACT, output)
    assert lora.path.name == "my-lora.safetensors"
    options = lora.options(ModelOptions())
    merged = merge_once(Model(tiny_checkpoint, options), replace(output, name="merged"))
    key = "model.diffusion_model.middle_block.1.proj_in.weight"
    second = changed(
        merged.path, tmp_path / "second.safetensors",
        lambda each, t: t + low_rank(tuple(t.shape), 2, "x") if each == key else t,
    )  # fmt: skip
    found = extract(Model(tiny_checkpoint, options), Model(second), EXACT, output)
    assert found.ranks == (2,)
    both = found.options(options)
    assert both.loras == (lora.path, found.path)
    assert both.lora_strengths == (1.0, 1.0)
    changed_weight = families.open_model(tiny_checkpoint, both).tensor(key)
    assert (changed_weight - load_file(second)[key]).abs().max() < 1e-6
    assert metadata_of(found.path)["dreambooth.loras"] == f"{lora_hash(lora)} 1"


def lora_hash(lora):
    return families.LoraFile(lora.path).sha256()


def test_files_that_do_not_belong_together_are_refused(bases, output, tmp_path, four_levels,
                                                       save_fp16_checkpoint):  # fmt: skip
    with pytest.raises(ValueError) as caught:
        extract(Model(bases["1"]), Model(bases["XL"]), EXACT, output)
    assert str(caught.value) == (
        "'xl.safetensors' is Stable Diffusion XL, but 'tiny.safetensors' is Stable Diffusion 1. "
        "Choose the base model that 'xl.safetensors' was trained from."
    )
    other = save_fp16_checkpoint(four_levels, tmp_path / "other.safetensors")
    with pytest.raises(ValueError) as caught:
        extract(Model(bases["1"]), Model(other), EXACT, output)
    assert str(caught.value) == (
        "'other.safetensors' and 'tiny.safetensors' have different networks: the shape of "
        "'unet.down_blocks.1.resnets.0.conv1.weight' is [32, 32, 3, 3] in the first and "
        "[64, 32, 3, 3] in the second. Choose the base model that 'other.safetensors' was trained "
        "from."
    )


def test_damaged_weights_are_refused(tiny_checkpoint, output, tmp_path):
    def change(key, tensor):
        return tensor * math.nan if "middle_block.1.proj_in.weight" in key else tensor

    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", change)
    with pytest.raises(ValueError, match=r"The weight 'model.diffusion_model.middle_block.1.proj_in"
                       r".weight' of 'trained.safetensors' holds"):  # fmt: skip
        extract(Model(tiny_checkpoint), Model(trained), EXACT, output)
    assert list(output.folder.iterdir()) == []


def test_the_same_is_extracted_once(tiny_checkpoint, output, tmp_path):
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", add_low_rank(4))
    base, model, loaded = Model(tiny_checkpoint), Model(trained), []

    class Listener(Observer):
        def on_load(self, path):
            loaded.append(path)

    first = extract_once(base, model, EXACT, output, observer=Listener())
    assert not first.reused
    other_name = replace(output, name="other name")
    again = extract_once(base, model, EXACT, other_name, observer=Listener())
    assert again == replace(first, reused=True)
    assert loaded == [trained]
    others = [
        extract_once(base, model, RankRule(rank=2), output),
        extract_once(base, model, EXACT, replace(output, dtype="fp16")),
        extract_once(base, Model(trained, first.options(ModelOptions())), EXACT, output),
    ]
    assert [found.reused for found in others] == [False] * 3
    assert [found.path.name for found in others] == [
        f"my-lora_{number:05d}.safetensors" for number in (1, 2, 3)
    ]
    (output.folder / "damaged.safetensors").write_bytes(b"x")
    assert extract_once(base, model, RankRule(rank=2), output).path == others[0].path
    first.path.unlink()
    assert not extract_once(base, model, EXACT, output).reused


def test_progress_is_reported_and_an_observer_can_stop_it(tiny_checkpoint, output, tmp_path):
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", add_low_rank(4))
    reports = []

    class Listener(Observer):
        def on_progress(self, activity, done, total):
            reports.append((activity, done, total))
            if len(reports) == 200:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(Model(tiny_checkpoint), Model(trained), EXACT, output, observer=Listener())
    assert [done for _, done, _ in reports] == [*range(1, 201)]
    assert {activity for activity, _, _ in reports} == {"Extracting"}
    assert list(output.folder.iterdir()) == []


def test_names_lead_into_subfolders(tiny_checkpoint, output, tmp_path):
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", add_low_rank(4))
    found = extract(
        Model(tiny_checkpoint), Model(trained), EXACT, replace(output, name="dogs/rex"), device=CPU
    )
    assert found.path == output.folder / "dogs" / "rex.safetensors"
    assert metadata_of(found.path)["ss_output_name"] == "rex"
