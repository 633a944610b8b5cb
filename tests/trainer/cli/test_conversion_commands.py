"""The commands `extract-lora` and `apply-lora`, checked against the functions that they call."""

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conversion.models import add_low_rank, changed, metadata_of
from trainer import families, toy
from trainer.__main__ import main
from trainer.conversion.likeness import Likeness


@pytest.fixture
def trained(tiny_checkpoint, tmp_path):
    return changed(tiny_checkpoint, tmp_path / "trained.safetensors", add_low_rank(4))


@pytest.fixture
def extraction(tiny_checkpoint, trained, tmp_path, caplog):
    """The arguments of an extraction."""
    caplog.set_level("INFO")
    return [
        "extract-lora", "--base", str(tiny_checkpoint), "--trained", str(trained), "--device",
        "cpu", "--output.folder", str(tmp_path / "loras"), "--output.name", "my-lora",
    ]  # fmt: skip


def test_extract_lora_writes_a_lora_and_says_what_is_kept(extraction, tmp_path, caplog):
    path = tmp_path / "loras" / "my-lora.safetensors"
    assert main([*extraction, "--rank", "4"]) == 0
    assert caplog.messages[-2:] == [
        f"Wrote {path}",
        "95 layers of rank 4 keep more than 99.9 % of what training changed in these layers, and "
        "more than 99.9 % of all that it changed.",
    ]
    tensors = load_file(path)
    assert tensors["lora_unet_conv_in.lora_down.weight"].dtype == torch.float16
    # Given again, it is found. Other rules make other files.
    assert main([*extraction, "--rank", "4", "--output.name", "other"]) == 0
    assert caplog.messages[-2] == f"Found {path}"
    assert main([*extraction, "--energy", "0.9", "--output.dtype", "fp32"]) == 0
    assert load_file(path.with_name("my-lora_00001.safetensors"))[
        "lora_unet_conv_in.lora_up.weight"
    ].shape[1] in (2, 3, 4)


def test_extract_lora_compares_images(extraction, caplog):
    prompts = ["--prompts", "a photo of a red cup", "--steps", "2"]
    photos = ["--photos", str(toy.PHOTOS)]
    assert main([*extraction, *prompts, "--judge", "toy", *photos]) == 0
    (said,) = [text for text in caplog.messages if text.startswith("Images of the base model")]
    assert "Subject fidelity: base model " in said
    assert said[:30] == Likeness(extracted=1, base=1, subject=None).describe()[:30]


@pytest.mark.parametrize(
    "given", [["--judge", "toy"], ["--prompts", "x"], ["--photos", str(toy.PHOTOS)]]
)
def test_what_belongs_to_images_goes_together(extraction, caplog, given, tmp_path):
    assert main([*extraction, *given]) == 1
    assert caplog.messages[-1] == (
        "Images are drawn from --prompts and compared by --judge, also with --photos. Give both "
        "--prompts and --judge, or none of the three."
    )
    assert not (tmp_path / "loras").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--energy", "95"], "energy must be above 0 and at most 1, got 95."),
        (["--rank", "0"], "rank must be 1 or more, got 0."),
        (["--output.name", "a:b"], "output.name must be a plain file name, got 'a:b'"),
    ],
)
def test_settings_are_checked(extraction, caplog, given, message):
    assert main([*extraction, *given]) == 1
    assert caplog.messages[-1].startswith(message)


def test_the_base_models_vae_is_used_for_both(extraction, tmp_path, tiny_checkpoint, caplog):
    other = changed(
        tiny_checkpoint, tmp_path / "vae.safetensors",
        lambda key, t: t + 1 if key.startswith("first_stage_model.") else t,
    )  # fmt: skip
    assert main([*extraction, "--vae", str(other)]) == 0
    assert "VAE" not in caplog.messages[-1]


def test_apply_lora_writes_the_checkpoint_that_the_lora_makes(
    extraction, tiny_checkpoint, trained, tmp_path, caplog
):
    main([*extraction, "--energy", "1", "--output.dtype", "fp32"])
    lora = tmp_path / "loras" / "my-lora.safetensors"
    arguments = [
        "apply-lora", "--base", str(tiny_checkpoint), "--loras", str(lora), "--output.folder",
        str(tmp_path / "out"), "--output.name", "whole",
    ]  # fmt: skip
    assert main(arguments) == 0
    path = tmp_path / "out" / "whole.safetensors"
    assert caplog.messages[-1] == f"Wrote {path}"
    merged, wanted = load_file(path), load_file(trained)
    assert max((merged[key] - wanted[key]).abs().max() for key in wanted) < 1e-6
    assert metadata_of(path)["modelspec.title"] == "whole"
    assert main(arguments) == 0
    assert caplog.messages[-1] == f"Found {path}"
    assert main([*arguments, "--lora-strengths", "0.5"]) == 0
    half = load_file(path.with_name("whole_00001.safetensors"))
    before = load_file(tiny_checkpoint)
    for key in wanted:
        assert (half[key] - (before[key] + wanted[key]) / 2).abs().max() < 1e-6, key
    assert families.family_of(families.CheckpointFile(path)) is families.SD1


def test_apply_lora_needs_something_to_apply(tiny_checkpoint, caplog):
    assert main(["apply-lora", "--base", str(tiny_checkpoint)]) == 1
    assert caplog.messages[-1] == "There is nothing to apply. Name LoRA files with --loras."


def test_a_settings_file_sets_the_rule(extraction, tmp_path, caplog):
    (tmp_path / "s.toml").write_text('rank = 2\n[output]\nname = "from-file"\n', "utf-8")
    name = extraction.index("--output.name")
    arguments = extraction[:name] + extraction[name + 2 :]
    assert main([*arguments, "--settings", str(tmp_path / "s.toml")]) == 0
    tensors = load_file(tmp_path / "loras" / "from-file.safetensors")
    assert len(tensors["lora_unet_conv_in.lora_down.weight"]) == 2
