"""The command line: its flags, messages and exit codes."""

import dataclasses
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open

from trainer.__main__ import main
from trainer.cli.program import COMMANDS
from trainer.cli.terminal import FINISHING, STOPPING_A_RUN
from trainer.families.sd1 import SD1
from trainer.settings.config import TrainingConfig

ROOT = Path(__file__).parents[3]
PATIENCE = 600
"""Seconds after which a process that does not end is killed."""


@pytest.fixture
def photos(draw_photos, tmp_path):
    return draw_photos(tmp_path / "photos", 2)


@pytest.fixture
def train(tiny_checkpoint, photos, tmp_path):
    """The arguments of a short run on the tiny checkpoint."""
    return [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos),
        "--dataset.prompt", "a photo of sks dog", "--output.folder", str(tmp_path / "out"),
        "--output.name", "dog", "--output.dtype", "fp32", "--device", "cpu", "--steps", "2",
        "--batch-size", "1", "--optimizer.learning-rate", "1e-3",
    ]  # fmt: skip


def settings_of(checkpoint: Path) -> dict:
    with safe_open(checkpoint, framework="pt") as file:
        return json.loads(file.metadata()["dreambooth.config"])


def test_train_writes_the_file_and_logs_the_settings(train, tmp_path, caplog):
    caplog.set_level("INFO")
    assert main(train) == 0
    path = tmp_path / "out" / "dog.safetensors"
    assert f"Wrote {path}" in caplog.messages
    assert "optimizer.learning_rate = 0.001" in caplog.messages
    assert settings_of(path)["steps"] == 2
    assert main(train) == 0
    assert f"Found {path}" in caplog.messages
    assert main([*train, "--on-existing", "retrain"]) == 0
    assert f"Wrote {path.with_name('dog_00001.safetensors')}" in caplog.messages


def test_with_a_judge_previews_are_scored_and_a_chart_is_written(train, tmp_path, caplog):
    caplog.set_level("INFO")
    scored = [
        *train, "--judge", "toy", "--preview.prompts", "a dog at night", "a cup on the beach",
        "--preview.every", "1", "--preview.sampling.steps", "1", "--scoring.class-prompt", "a cup",
        "--scoring.num-class-images", "1",
    ]  # fmt: skip
    assert main(scored) == 0
    curve = tmp_path / "out" / "previews" / "curve.png"
    assert f"Wrote the chart of losses and scores: {curve}" in caplog.messages
    with Image.open(curve) as image:
        assert image.size == (800, 750)
    (scores,) = tmp_path.glob("out/runs/*/scores.jsonl")
    assert [json.loads(line)["step"] for line in scores.read_text().splitlines()] == [0, 1, 2]


def test_flags_override_the_settings_file_and_the_file_overrides_the_preset(train, tmp_path):
    settings = tmp_path / "settings.toml"
    settings.write_text("seed = 7\nsteps = 9\n[optimizer]\nweight_decay = 0.5\n", "utf-8")
    assert main([*train, "--preset", "object", "--settings", str(settings)]) == 0
    used = settings_of(tmp_path / "out" / "dog.safetensors")
    assert (used["steps"], used["batch_size"]) == (2, 1)  # flags override both
    assert (used["seed"], used["optimizer"]["weight_decay"]) == (7, 0.5)


def test_an_unknown_preset_is_refused_with_the_choices(train, caplog):
    assert main([*train, "--preset", "dog"]) == 1
    assert caplog.messages[-1] == (
        "--preset must be one of object, face, textual inversion + DreamBooth, object XL, face XL, "
        "toy, got 'dog'."
    )


def test_a_damaged_settings_file_is_named(train, tmp_path, caplog):
    (tmp_path / "s.toml").write_text("steps = = 3", "utf-8")
    assert main([*train, "--settings", str(tmp_path / "s.toml")]) == 1
    assert caplog.messages[-1].startswith(f"'{tmp_path / 's.toml'}' is not valid TOML at line 1")


def test_a_failed_run_exits_with_1_and_leaves_no_file(train, tmp_path, caplog):
    train[train.index("--dataset.photos") + 1] = str(tmp_path / "nowhere")
    assert main(train) == 1
    expected = f"'{tmp_path / 'nowhere'}' does not exist. Name a folder of images, or images."
    assert caplog.messages[-1] == expected
    assert not list((tmp_path / "out").rglob("*.safetensors"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "help missing" not in shown
    if command == "train":
        for field in dataclasses.fields(TrainingConfig):
            assert f"--{field.name.replace('_', '-')}" in shown


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    """The command line in a separate process, which is killed at the end of the block."""
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", *arguments],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        net = threading.Timer(PATIENCE, process.kill)
        net.start()
        try:
            yield process
        finally:
            net.cancel()
            process.kill()


@pytest.mark.posix
def test_ctrl_c_finishes_the_run_and_saves_the_result(train, tmp_path):
    train[train.index("--steps") + 1] = "100000"
    with started(train) as process:
        shown = ""
        while "Training 1/" not in shown:
            shown += process.stderr.read(1) or pytest.fail(f"The run ended: {shown}")
        process.send_signal(signal.SIGINT)
        shown += process.communicate()[1]
    assert process.returncode == 0, shown
    assert FINISHING in shown
    steps = int(re.search(r"Finished early, after step (\d+) of 100000, as requested\.", shown)[1])
    with safe_open(tmp_path / "out" / "dog.safetensors", framework="pt") as file:
        assert file.metadata()["ss_steps"] == str(steps)


def test_a_second_ctrl_c_stops_the_run_so_that_it_can_be_resumed(
    train, tmp_path, monkeypatch, capfd, caplog
):
    """Both are pressed during step 2."""
    caplog.set_level("INFO")
    predict, calls = SD1.predict, []

    def pressing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return predict(*arguments)

    monkeypatch.setattr(SD1, "predict", pressing)
    train[train.index("--steps") + 1] = "4"
    assert main(train) == 130
    shown = capfd.readouterr().err
    assert shown.index(FINISHING) < shown.index(STOPPING_A_RUN)
    assert "Stopped after step 2. Run the same again to resume from there." in caplog.messages
    assert len(list((tmp_path / "out" / "runs").glob("*/states/*.pt"))) == 1
    assert not (tmp_path / "out" / "dog.safetensors").exists()


def test_a_run_is_planned_and_found_again(tiny_checkpoint, photos, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("trainer.planning.plan.FULL_WIDTH", 32)
    caplog.set_level(logging.INFO)
    command = [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos),
        "--dataset.prompt", "a photo of sks dog", "--output.folder", str(tmp_path / "out"),
        "--steps", "2", "--batch-size", "2", "--device", "cpu", "--vram",
    ]  # fmt: skip
    assert main([*command, "8"]) == 0
    (plan,) = [text for text in caplog.messages if text.startswith("Memory: ")]
    assert "of 7.3 GB usable. Chosen so that it fits: precision bf16 (" in plan
    caplog.clear()
    assert main([*command, "6"]) == 0
    assert any(text.startswith("Found ") for text in caplog.messages)
    caplog.clear()
    assert main([*command, "8", "--precision", "fp32"]) == 0
    assert not any("precision bf16" in text for text in caplog.messages)
    assert main([*command, "lots"]) == 1
    assert caplog.messages[-1] == (
        "vram must be auto, off or a number of GB such as 8, got 'lots'."
    )
