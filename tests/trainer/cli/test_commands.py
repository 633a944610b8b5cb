"""The commands that generate images, and what they share. Training is tested in test_program.py."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main
from trainer.cli.commands import new_names
from trainer.families.sd1 import SD1
from trainer.precision import DTYPES


def test_priors_generates_class_images(tiny_checkpoint, tmp_path):
    code = main(
        [
            "priors", "--base", str(tiny_checkpoint), "--prompt", "a photo of a dog",
            "--num-images", "3", "--sampling.steps", "2", "--folder", str(tmp_path),
            "--device", "cpu",
        ]
    )  # fmt: skip
    assert code == 0
    assert len(list(tmp_path.rglob("*.png"))) == 3


def test_sample_uses_each_scheduler_and_overwrites_nothing(tiny_checkpoint, tmp_path):
    arguments = [
        "sample", "--checkpoint", str(tiny_checkpoint), "--prompts", "a dog", "a cat",
        "--schedulers", "DDIM", "PNDM", "--steps", "2", "--folder", str(tmp_path), "--device",
        "cpu",
    ]  # fmt: skip
    assert main(arguments) == 0
    assert main(arguments) == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 8
    assert names[:2] == ["DDIM_000.png", "DDIM_000_1.png"]
    first, again = (np.asarray(Image.open(tmp_path / name)) for name in names[:2])
    assert (first == again).all()


def test_sample_uses_the_given_scheduler(tiny_checkpoint, tmp_path):
    code = main(
        [
            "sample", "--checkpoint", str(tiny_checkpoint), "--prompts", "a dog", "--scheduler",
            "PNDM", "--steps", "2", "--folder", str(tmp_path), "--device", "cpu",
        ]
    )  # fmt: skip
    assert code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["PNDM_000.png"]


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize(
    "command",
    [
        ["priors", "--num-images", "1", "--sampling.steps", "1", "--prompt", "a cat", "--base"],
        ["sample", "--steps", "1", "--prompts", "a cat", "--checkpoint"],
        ["compare", "--steps", "1", "--prompts", "a cat", "--checkpoints"],
    ],
    ids=lambda command: command[0],
)
def test_drawing_holds_the_unet_in_the_format_of_the_computation(
    tiny_checkpoint, tmp_path, monkeypatch, command, precision
):
    found, predict = set(), SD1.predict

    def watched(model, *args):
        found.add((model.unet.conv_in.weight.dtype, model.vae.decoder.conv_in.weight.dtype))
        return predict(model, *args)

    monkeypatch.setattr(SD1, "predict", watched)
    options = ["--precision", precision, "--folder", str(tmp_path), "--device", "cpu"]
    assert main([*command, str(tiny_checkpoint), *options]) == 0
    assert found == {(DTYPES[precision], torch.float32)}


def test_files_that_belong_together_get_the_same_number(tmp_path):
    names = ["grid.png", "scores.json"]
    assert new_names(tmp_path, *names) == [tmp_path / name for name in names]
    (tmp_path / "grid.png").touch()
    (tmp_path / "scores_1.json").touch()
    assert new_names(tmp_path, *names) == [tmp_path / "grid_2.png", tmp_path / "scores_2.json"]


def test_sample_needs_the_placeholder_in_a_prompt(tiny_checkpoint, tmp_path, caplog):
    torch.save({"<dog>": torch.zeros(1, 24)}, tmp_path / "my-dog.bin")
    command = [
        "sample", "--checkpoint", str(tiny_checkpoint), "--embedding", str(tmp_path / "my-dog.bin"),
        "--steps", "2", "--folder", str(tmp_path / "out"), "--device", "cpu", "--prompts",
    ]  # fmt: skip
    assert main([*command, "a dog"]) == 1
    assert caplog.messages[-1].startswith("The embedding's placeholder 'my-dog' appears in no p")
    assert not (tmp_path / "out").exists()
    assert main([*command, "a dog", "a photo of my-dog"]) == 0
    assert main([*command, "a dog", "--negative-prompt", "my-dog"]) == 0
    without = [part for part in command if "embedding" not in part and ".bin" not in part]
    assert main([*without, "a dog"]) == 0
