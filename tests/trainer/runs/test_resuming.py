"""Runs made by an older version of the trainer: reused, resumed or started over, with a warning."""

import hashlib
import importlib.util
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.runs import numerics
from trainer.runs.numerics import NUMERICS_VERSION
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    TrainingConfig,
)
from trainer.storage import states
from trainer.training.session import Session

CPU = torch.device("cpu")
MANIFESTS = json.loads(Path(__file__).with_name("manifests_version_0.json").read_text("utf-8"))
"""Manifests of real runs, written before the numerics versions."""
OLD = (
    "made by an older version of the trainer, whose results may differ (numerics version 0, now "
    f"{NUMERICS_VERSION})"
)


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    """Four steps with everything that a state contains."""
    rng = np.random.default_rng(0)
    for kind in ("photos", "class"):
        (tmp_path / kind).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, size=(16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number}.png")
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(
            photos=(tmp_path / "photos",), prompt="a photo of sks dog", resolution=16
        ),
        prior=PriorConfig(weight=0.5, prompt="a photo of a dog", images=(tmp_path / "class",)),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog", dtype="fp32"),
        steps=4,
        batch_size=1,
        ema=True,
    )


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


class Watching(Observer):
    """Records the steps, and stops the run at one of them."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.steps = stop_at, list[int]()

    def on_step(self, report):
        self.steps.append(report.step)
        if report.step == self.stop_at:
            raise KeyboardInterrupt


def run(
    config: TrainingConfig, runs: Path | None, observer: Observer | None = None, **options: object
) -> TrainingResult:
    return train(config, FullFineTune(), device=CPU, observer=observer, runs=runs, **options)


def stop(config: TrainingConfig, runs: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config, runs, Watching(stop_at=step))


def same(one: TrainingResult, other: TrainingResult) -> bool:
    tensors, others = load_file(one.checkpoint), load_file(other.checkpoint)
    losses = [[report.loss for report in result.reports] for result in (one, other)]
    return losses[0] == losses[1] and all(torch.equal(tensors[n], others[n]) for n in tensors)


def identity_of(definition: dict) -> str:
    """The name of a run's folder, as the old code computed it."""
    text = json.dumps(definition, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def manifest_of(runs: Path) -> dict:
    (path,) = runs.glob("*/manifest.json")
    return json.loads(path.read_text("utf-8"))


def make_old(runs: Path, version: str = "7431dd68bb2c8a9e") -> Path:
    """Turn the only run in a folder into one of the old code. Return its folder."""
    manifest = manifest_of(runs)
    folder = runs / manifest["identity"]
    del manifest["numerics"]
    manifest["definition"]["version of the trainer"] = version
    manifest["identity"] = identity_of(manifest["definition"])
    (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    for path in (folder / "states").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        del state["numerics"]
        path.unlink()
        states.save(path.parent, len(state["reports"]), state)
    return folder.rename(runs / manifest["identity"])


def test_make_old_makes_runs_like_real_old_ones(config, runs):
    stop(config, runs, step=2)
    folder = make_old(runs)
    for manifest in MANIFESTS.values():
        assert manifest_of(runs).keys() == manifest.keys()
        assert identity_of(manifest["definition"]) == manifest["identity"]
    assert identity_of(manifest_of(runs)["definition"]) == folder.name


def test_a_finished_old_run_is_reused_with_a_warning(config, runs, caplog):
    caplog.set_level(logging.INFO)
    first = run(config, runs)
    assert manifest_of(runs)["numerics"] == NUMERICS_VERSION
    run(config, runs)
    assert OLD not in caplog.text
    folder, watching = make_old(runs), Watching()
    caplog.clear()
    again = run(config, runs, watching)
    assert (again.reused, again.checkpoint, watching.steps) == (True, first.checkpoint, [])
    assert caplog.messages == [
        f"This run was {OLD}. Its result is reused; set on_existing to retrain to train it again.",
        f"Reusing the finished run, after step 4 of 4: {first.checkpoint}",
    ]
    assert [path.parent for path in runs.glob("*/manifest.json")] == [folder]


def test_a_stopped_old_run_is_resumed_in_its_folder_and_keeps_its_version(config, runs, caplog):
    caplog.set_level(logging.INFO)
    whole = run(config, None)
    stop(config, runs, step=2)
    folder, watching = make_old(runs), Watching(stop_at=3)
    caplog.clear()
    with pytest.raises(KeyboardInterrupt):
        run(config, runs, watching)
    assert (
        f"The state of step 2 was {OLD}. Training continues from it with the current version; set "
        "on_existing to retrain to start over."
    ) in caplog.messages
    assert "Resuming after step 2." in caplog.messages
    watching = Watching()
    assert same(run(config, runs, watching), whole)
    assert watching.steps == [4]
    assert caplog.text.count(OLD) == 2
    assert [path.parent for path in runs.glob("*/manifest.json")] == [folder]
    assert manifest_of(runs)["numerics"] == 0


def test_retraining_an_old_run_gives_it_the_current_version(config, runs, caplog):
    first = run(config, runs)
    folder, watching = make_old(runs), Watching()
    again = run(config, runs, watching, on_existing="retrain")
    assert watching.steps == [1, 2, 3, 4]
    assert manifest_of(runs)["numerics"] == NUMERICS_VERSION
    assert manifest_of(runs)["identity"] == folder.name
    assert first.checkpoint != again.checkpoint
    caplog.clear()
    assert run(config, runs).checkpoint == again.checkpoint
    assert OLD not in caplog.text


def test_an_old_run_with_a_missing_file_is_trained_again_with_the_current_version(config, runs):
    run(config, runs).checkpoint.unlink()
    make_old(runs)
    run(config, runs)
    assert manifest_of(runs)["numerics"] == NUMERICS_VERSION


def test_more_steps_resume_from_the_state_of_an_old_run(config, runs, caplog):
    caplog.set_level(logging.INFO)
    config = replace(config, output=replace(config.output, keep_state=True))
    run(replace(config, steps=3), runs)
    old, watching = make_old(runs), Watching()
    assert same(run(config, runs, watching), run(config, None))
    assert watching.steps == [4]
    assert f"The state of step 3 was {OLD}." in caplog.text
    assert "Resuming after step 3 of the run of 3 steps." in caplog.messages
    new = [path for path in runs.glob("*/manifest.json") if path.parent != old]
    assert json.loads(new[0].read_text("utf-8"))["numerics"] == 0


def lack_a_part(state: dict) -> str:
    del state["average"]
    return "KeyError('average')"


def hold_another_shape(state: dict) -> str:
    """The last tensor has it, so that all others are loaded before the error."""
    state["parameters"][-1] = torch.zeros(3, 5, 7)
    return "RuntimeError("


def hold_other_images(state: dict) -> str:
    """The error occurs when everything but the reports is loaded."""
    state["batches"]["class_images"]["count"] = 9
    return "ValueError('The run to resume had 9 class images, now there are 2."


@pytest.mark.parametrize(
    ("spoil", "optimizer"),
    [(lack_a_part, "AdamW"), (hold_another_shape, "AdamW"), (hold_other_images, "Prodigy")],
)
def test_an_old_state_that_cannot_be_loaded_is_renamed_and_training_starts_over(
    config, runs, caplog, spoil, optimizer
):
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    config = replace(config, optimizer=OptimizerConfig(name=optimizer, learning_rate=rate))
    whole = run(config, None)
    stop(config, runs, step=2)
    folder = make_old(runs)
    (path,) = (folder / "states").iterdir()
    state = torch.load(path, weights_only=True)
    error = spoil(state)
    path.unlink()
    path = states.save(path.parent, 2, state)
    caplog.clear()
    watching = Watching()
    assert same(run(config, runs, watching), whole)
    assert watching.steps == [1, 2, 3, 4]
    aside = path.with_suffix(".unusable")
    kept, started = caplog.messages
    assert kept.startswith(f"The state '{path}' was {OLD}. It cannot be loaded ({error}")
    assert kept.endswith(f"), so it is not used, and kept as '{aside.name}'.")
    assert started == "There is no other state, so training starts at step 1."
    assert list(aside.parent.iterdir()) == [aside]
    assert manifest_of(runs)["numerics"] == NUMERICS_VERSION


def test_a_state_of_the_current_version_that_cannot_be_loaded_is_an_error(config, runs):
    stop(config, runs, step=2)
    (path,) = runs.glob("*/states/*.pt")
    state = torch.load(path, weights_only=True)
    assert state["numerics"] == NUMERICS_VERSION
    hold_other_images(state)
    path.unlink()
    path = states.save(path.parent, 2, state)
    with pytest.raises(ValueError, match="^The run to resume had 9 class images"):
        run(config, runs)
    assert path.exists()


def test_running_out_of_memory_does_not_discard_an_old_state(config, runs, monkeypatch):
    stop(config, runs, step=2)
    folder = make_old(runs)

    def load_state(self: Session, state: dict) -> None:
        if state["reports"]:  # not when the initial state is restored
            raise MemoryError

    monkeypatch.setattr(Session, "load_state", load_state)
    with pytest.raises(MemoryError):
        run(config, runs)
    assert [path.suffix for path in (folder / "states").iterdir()] == [".pt"]


def edited_trainer(folder: Path) -> ModuleType:
    """The trainer package with one more comment in every file, under another name."""
    package = folder / "edited"
    trainer = Path(__file__).parents[3] / "trainer"
    shutil.copytree(trainer, package, ignore=shutil.ignore_patterns("*.safetensors", "photos"))
    for path in package.rglob("*.py"):
        path.write_text(f"{path.read_text('utf-8')}\n# A comment.\n", "utf-8")
    spec = importlib.util.spec_from_file_location(
        "edited", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["edited"] = module
    spec.loader.exec_module(module)
    return module


def test_editing_the_source_code_does_not_hide_runs(config, runs, tmp_path, caplog):
    """With a comment added to every file, a finished run is reused and a stopped one resumed."""
    caplog.set_level(logging.INFO)
    finished, stopped = config, replace(config, seed=1)
    first = run(finished, runs)
    stop(stopped, runs, step=2)
    edited_trainer(tmp_path)
    try:
        loop = importlib.import_module("edited.loop")
        method = importlib.import_module("edited.methods.full").FullFineTune()
        options = {"device": CPU, "runs": runs}
        again = loop.train(finished, method, **options)
        assert (again.reused, again.checkpoint) == (True, first.checkpoint)
        watching = Watching()
        loop.train(stopped, method, observer=watching, **options)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "edited"]:
            del sys.modules[name]
    assert watching.steps == [3, 4]
    assert "numerics version" not in caplog.text
    assert len(list(runs.glob("*/manifest.json"))) == 2


@pytest.mark.parametrize(("version", "age"), [(NUMERICS_VERSION - 1, "an older"), (99, "a newer")])
def test_a_version_is_described_as_older_or_newer(version, age):
    assert numerics.describe(version) == (
        f"{age} version of the trainer, whose results may differ (numerics version {version}, now "
        f"{NUMERICS_VERSION})"
    )


def test_a_state_of_another_kind_of_run_is_refused(config, runs):
    stop(config, runs, step=2)
    (old,) = runs.glob("*/states/*.pt")
    old.unlink()
    path = states.save(old.parent, 2, {numerics.KEY: NUMERICS_VERSION, "parameters": 5})
    with pytest.raises(ValueError) as caught:
        run(config, runs)
    assert str(caught.value).startswith(f"The state '{path}' does not belong to this run (")
    assert str(caught.value).endswith("). Delete it, then run the same again.")
