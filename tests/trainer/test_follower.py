"""Commands that two processes share. The weights are compared in
`training/test_data_parallel.py`."""

import json

import pytest
from PIL import Image, ImageChops
from safetensors.torch import load_file

from tests.trainer.torchrun import torchrun


@pytest.fixture
def train(tiny_checkpoint, draw_photos, tmp_path):
    """Trains the tiny checkpoint with so many processes, and returns what they print."""
    photos = draw_photos(tmp_path / "photos", 2)
    mask = Image.new("L", (16, 16))
    mask.paste(255, (2, 3, 9, 12))
    mask.save(photos / "0-mask.png")

    def train(name, num_processes, *arguments):
        done = torchrun(
            num_processes, "-m", "trainer", "train", "--base", str(tiny_checkpoint),
            "--dataset.photos", str(photos), "--dataset.prompt", "a sks dog", "--device", "cpu",
            "--dataset.resolution", "16", "--dataset.random-backgrounds", "2",
            "--batch-size", "2", "--prior.weight", "1",
            "--prior.prompt", "a dog", "--prior.num-images", "5",
            "--prior.sampling.batch-size", "1", "--prior.sampling.steps", "2",
            "--output.folder", str(tmp_path / name), "--output.name", "dog",
            "--optimizer.learning-rate", "1e-4", *arguments,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stderr.replace("\r", "\n")

    return train


def test_two_processes_draw_each_class_image_once_and_continue_a_run_of_one(tmp_path, train):
    train("one", 1, "--steps", "4")
    previews = ["--preview.prompts", "a dog", "--preview.sampling.steps", "2"]
    said = train("two", 2, "--steps", "2", "--output.keep-state", "--sharded", *previews)
    assert said.count("Training on 2 photos") == 1
    drawn = {name: list((tmp_path / name).glob("class_images/*/*.png")) for name in ("one", "two")}
    assert [path.name for path in sorted(drawn["two"])] == [f"{n:06d}.png" for n in range(5)]
    (manifest,) = (tmp_path / "two").glob("class_images/*/manifest.jsonl")
    seeds = [json.loads(line)["seed"] for line in manifest.read_text("utf-8").splitlines()]
    assert sorted(seeds) == [0, 1, 2, 3, 4]
    for ours, theirs in zip(sorted(drawn["two"]), sorted(drawn["one"]), strict=True):
        with Image.open(ours) as mine, Image.open(theirs) as other:
            assert ImageChops.difference(mine, other).getextrema() == ((0, 0),) * 3

    assert len(list((tmp_path / "two" / "previews").glob("step00000[02]_0.png"))) == 2

    said = train("two", 1, "--steps", "4")
    assert "Resuming after step 2 of the run of 2 steps." in said
    one, two = tmp_path / "one" / "dog.safetensors", tmp_path / "two" / "dog_00001.safetensors"
    assert distance(load_file(one), load_file(two)) < 1e-5


def distance(first, second):
    """Between the weights of two files, relative to their length."""
    differences = sum((first[name] - second[name]).square().sum() for name in first)
    return (differences / sum(each.square().sum() for each in first.values())).sqrt().item()
