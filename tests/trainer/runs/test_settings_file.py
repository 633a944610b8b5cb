"""The settings that a run leaves for the command line."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from trainer.__main__ import main
from trainer.cli.program import COMMANDS
from trainer.cli.settings_file import read_toml, read_values
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs import settings_file
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig

PROMPT = 'a "photo" of \\sks\x7f dog, très 😀\nnew line'
METHODS = {
    "train": FullFineTune(train_text_encoder=True, text_encoder_stop_step=3),
    "lora": LoRA(rank=8, dropout=0.25),
    "textual-inversion": TextualInversion(placeholder="<dog>", initializer="dog"),
}


@pytest.mark.parametrize("command", METHODS)
def test_every_setting_is_read_back(tmp_path, command):
    folder = tmp_path / "output" / "runs" / "0123"
    config = TrainingConfig(
        base=tmp_path / "models" / "a.safetensors",
        dataset=DatasetConfig(photos=(tmp_path / "in" / "1.png", tmp_path / "in"), prompt=PROMPT),
        prior=PriorConfig(weight=0.5, prompt="a dog"),
        loras=(tmp_path / "models" / "b.safetensors",), lora_strengths=(-0.5,),
    ).replace({"output": {"folder": tmp_path / "output", "name": "x"}})  # fmt: skip
    settings_file.write(folder, config, METHODS[command])
    found = read_values(
        COMMANDS[command], read_toml(folder / "settings.toml"), str(folder / "settings.toml")
    )
    assert found.pop(("runs",)) == tmp_path / "output" / "runs"
    assert found.pop(("vram",)) == "off"
    assert found == {**flat(config, "config"), **flat(METHODS[command], "method")}


def flat(settings, *path):
    """The values of nested dataclasses, by their paths."""
    found = {}
    for field in dataclasses.fields(settings):
        value, here = getattr(settings, field.name), (*path, field.name)
        found |= flat(value, *here) if dataclasses.is_dataclass(value) else {here: value}
    return found


def test_paths_are_relative_to_the_folder_that_contains_everything(tmp_path):
    folder = tmp_path / "output" / "runs" / "0123"
    config = TrainingConfig(
        base=tmp_path / "models" / "a.safetensors",
        dataset=DatasetConfig(photos=(tmp_path / "input" / "dog",), prompt="a sks dog"),
    ).replace({"output": {"folder": tmp_path / "output"}})
    settings_file.write(folder, config, FullFineTune())
    found = read_toml(folder / "settings.toml")
    assert found["relative_to"] == "../../.."
    assert found["base"] == "models/a.safetensors"
    assert found["dataset"]["photos"] == ["input/dog"]
    assert found["output"]["folder"] == "output"
    assert str(tmp_path) not in (folder / "settings.toml").read_text("utf-8")
    assert "python -m trainer train --settings" in (folder / "settings.toml").read_text("utf-8")


def test_a_run_is_made_again_elsewhere(tmp_path, tiny_checkpoint, draw_photos):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    shutil.copy(tiny_checkpoint, here / "base.safetensors")
    photos = draw_photos(here / "photos", 2)
    (photos / "0.txt").write_text("a sks dog asleep")
    arguments = [
        "train", "--base", str(here / "base.safetensors"), "--dataset.photos", str(photos),
        "--dataset.prompt", "a sks dog", "--output.folder", str(here / "out"), "--output.name",
        "dog", "--device", "cpu", "--steps", "2", "--batch-size", "1", "--prior.weight", "0",
    ]  # fmt: skip
    assert main(arguments) == 0
    (run,) = (here / "out" / "runs").glob("*/")
    shutil.copytree(photos, there / "photos")
    shutil.copy(tiny_checkpoint, there / "base.safetensors")
    settings = there / run.relative_to(here) / "settings.toml"
    settings.parent.mkdir(parents=True)
    (run / "settings.toml").rename(settings)

    assert main(["train", "--settings", str(settings), "--device", "cpu"]) == 0

    assert [path.name for path in (there / "out" / "runs").glob("*/")] == [run.name]
    first, second = (load_file(root / "out" / "dog.safetensors") for root in (here, there))
    assert all((first[name] == second[name]).all() for name in first.keys() | second.keys())


def test_a_file_without_a_common_folder_keeps_whole_paths(tmp_path, monkeypatch):
    """As on Windows, with photos on another drive."""

    def refuse(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr(settings_file.os.path, "commonpath", refuse)
    config = TrainingConfig(
        base=tmp_path / "a.safetensors", dataset=DatasetConfig(photos=(Path("p"),), prompt="a dog")
    )
    settings_file.write(tmp_path / "runs" / "0123", config, FullFineTune())
    found = read_toml(tmp_path / "runs" / "0123" / "settings.toml")
    assert "relative_to" not in found
    assert found["base"] == (tmp_path / "a.safetensors").as_posix()
