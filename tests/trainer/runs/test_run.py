"""Runs on a tiny checkpoint that are stopped, resumed, reused and retrained."""

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.families import files
from trainer.loop import TrainingResult, train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_checkpoint, draw_photos, tmp_path) -> TrainingConfig:
    """Two steps on three photos."""
    photos = draw_photos(tmp_path / "photos", 3)
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(photos,), prompt="a photo of sks dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog", dtype="fp32"),
        steps=2,
        batch_size=1,
    )


@pytest.fixture
def everything(config, draw_photos, tmp_path) -> TrainingConfig:
    """Six steps with everything that a state contains."""
    class_images = draw_photos(tmp_path / "class", 4, seed=1)
    for number in range(2):
        mask = Image.new("L", (16, 16))
        mask.paste(255, (2, 3, 9, 12))
        mask.save(tmp_path / "photos" / f"{number}-mask.png")
    return replace(
        config,
        dataset=replace(config.dataset, random_backgrounds=3, mirror=True),
        steps=6,
        gradient_accumulation=2,
        ema=True,
        ema_decay=0.5,
        prior=PriorConfig(weight=0.5, prompt="a photo of a dog", images=(class_images,)),
    )


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


class Watching(Observer):
    """Records the steps, and stops the run at one of them, as Cancel and Ctrl+C do."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at = stop_at
        self.steps: list[int] = []
        self.loaded: list[Path] = []
        self.started = False

    def on_load(self, path):
        self.loaded.append(path)

    def on_start(self, total_steps):
        self.started = True

    def on_step(self, report):
        self.steps.append(report.step)
        if report.step == self.stop_at:
            raise KeyboardInterrupt


class Finishing(Watching):
    """Finishes the run after step 3."""

    def wants_to_finish(self):
        return self.steps[-1] == 3


def run(
    config: TrainingConfig, runs: Path | None, observer: Observer | None = None, **options: object
) -> TrainingResult:
    method = FullFineTune(train_text_encoder=config.ema)
    return train(config, method, device=CPU, observer=observer, runs=runs, **options)


def stop(config: TrainingConfig, runs: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(config, runs, Watching(stop_at=step))


def same(one: TrainingResult, other: TrainingResult) -> bool:
    tensors, others = load_file(one.checkpoint), load_file(other.checkpoint)
    losses = [[(r.loss, r.grad_norm) for r in result.reports] for result in (one, other)]
    weights = all(torch.equal(tensors[name], others[name]) for name in tensors)
    return losses[0] == losses[1] and tensors.keys() == others.keys() and weights


def only_run(runs: Path) -> Path:
    (manifest,) = runs.glob("*/manifest.json")
    return manifest.parent


def logged_steps(runs: Path) -> list[int]:
    lines = (only_run(runs) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize("optimizer", ["AdamW", "AdamW8bit", "Prodigy"])
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(everything, runs, caplog, optimizer):
    caplog.set_level(logging.INFO)
    rate = 1.0 if optimizer == "Prodigy" else 1e-3
    config = replace(everything, optimizer=OptimizerConfig(name=optimizer, learning_rate=rate))
    whole = run(config, None)
    stop(config, runs, step=3)
    assert "Stopped after step 3. Run the same again to resume from there." in caplog.messages
    assert sum(" bytes per trained weight." in message for message in caplog.messages) == 1
    assert [path.name for path in config.output.folder.iterdir()] == ["dog.safetensors"]
    watching = Watching()
    resumed = run(config, runs, watching)
    assert watching.steps == [4, 5, 6]
    assert same(resumed, whole)
    assert logged_steps(runs) == [1, 2, 3, 4, 5, 6]
    assert not list((only_run(runs) / "states").iterdir())


def test_a_killed_run_resumes_from_its_newest_undamaged_state(everything, runs, tmp_path, caplog):
    """Killed at step 5, with states of steps 2 and 4: the newer one is used. If that is damaged, it
    is renamed and the older one used."""
    config = replace(everything, output=replace(everything.output, state_every=2))
    killed, damaged = tmp_path / "killed", tmp_path / "damaged"

    class Killing(Watching):
        def on_step(self, report):
            if report.step == 5:
                shutil.copytree(runs, killed)
                shutil.copytree(runs, damaged)
            super().on_step(report)

    whole = run(config, runs, Killing())
    assert logged_steps(killed) == [1, 2, 3, 4, 5]
    watching = Watching()
    assert same(run(config, killed, watching), whole)
    assert watching.steps == [5, 6]
    assert logged_steps(killed) == [1, 2, 3, 4, 5, 6]

    (state,) = damaged.glob("*/states/step000004-*.pt")
    state.write_bytes(state.read_bytes()[:-1])
    watching = Watching()
    assert same(run(config, damaged, watching), whole)
    assert watching.steps == [3, 4, 5, 6]
    assert list(damaged.glob("*/states/*")) == [state.with_suffix(".damaged")]


def kept_before_the_end(config: TrainingConfig, runs: Path, copy: Path) -> TrainingResult:
    """Run to the end, and copy the run's folder as a kill before the record of the result would
    leave it, with a state."""

    class Copying(Watching):
        def on_step(self, report):
            super().on_step(report)
            if report.step == report.total_steps:
                shutil.copytree(runs, copy)

    return run(config.replace({"output": {"state_every": 1}}), runs, Copying())


def test_a_run_killed_after_it_wrote_its_result_does_not_write_it_again(config, runs, tmp_path):
    whole = kept_before_the_end(config, runs, tmp_path / "killed")
    watching = Watching()
    resumed = run(config, tmp_path / "killed", watching)
    assert (watching.steps, resumed.files) == ([2], whole.files)
    assert [path.name for path in config.output.folder.iterdir()] == ["dog.safetensors"]
    assert run(config, tmp_path / "killed").files == whole.files


@pytest.mark.parametrize(
    ("keep_state", "is_old", "is_kept"),
    [(False, False, False), (True, False, True), (False, True, True)],
)
def test_states_that_a_killed_session_left_in_a_finished_run_are_deleted(
    config, runs, tmp_path, keep_state, is_old, is_kept
):
    """But not if they were to be kept, or if an older version does not say whether."""
    config = config.replace({"output": {"keep_state": keep_state}})
    kept_before_the_end(config, runs, tmp_path / "killed")
    folder = only_run(runs)
    shutil.copytree(tmp_path / "killed" / folder.name / "states", folder / "states",
                    dirs_exist_ok=True)  # fmt: skip
    if is_old:
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["keeps_state"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    assert run(config, runs).reused
    assert bool(list((folder / "states").iterdir())) == is_kept


def test_a_finished_run_is_reused_with_its_previews(config, runs):
    sampling = SamplingConfig(steps=2)
    preview = PreviewConfig(prompts=("a dog", "a cat"), every=1, sampling=sampling)
    config = replace(config, preview=preview)
    starting, watching = Watching(), Watching()
    first = run(config, runs, starting)
    again = run(config, runs, watching)
    assert (starting.loaded, watching.loaded) == ([config.base], [])
    assert not watching.started
    assert again.reused
    assert not first.reused
    assert (again.checkpoint, again.reports, again.moved) == (
        first.checkpoint, first.reports, first.moved,
    )  # fmt: skip
    assert len(again.previews) == len(first.previews) == 2
    assert all(map(np.array_equal, again.previews, first.previews))
    manifest = json.loads((only_run(runs) / "manifest.json").read_text())
    assert (manifest["status"], manifest["identity"]) == ("finished", only_run(runs).name)


def test_reusing_a_run_deletes_what_it_could_not_delete_before(config, runs):
    folder = run(config, runs).checkpoint.parent
    left, others = folder / ".dog.1.part", folder / ".download.part"
    for path in (left, others):
        path.mkdir()
        (path / "whole.safetensors").touch()
    (left / "lock").touch()
    run(config, runs)
    assert (left.exists(), others.exists()) == (False, True)


@pytest.mark.parametrize("folder", ["runs", None])
def test_a_run_that_is_finished_early_saves_its_result(everything, tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    runs = tmp_path / folder if folder else None
    finishing = Finishing()
    result = run(everything, runs, finishing)
    assert finishing.steps == [1, 2, 3]
    assert (result.steps, result.total_steps, len(result.reports)) == (3, 6, 3)
    assert "Finished early, after step 3 of 6, as requested." in caplog.messages
    with safe_open(result.checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_steps"], metadata["ss_max_train_steps"]) == ("3", "6")
    assert same(result, run(replace(everything, steps=3), None))
    files = everything.output.folder.glob("*.safetensors")
    assert sorted(path.name for path in files) == ["dog.safetensors", "dog_00001.safetensors"]


def test_a_run_that_was_finished_early_is_reused_with_its_steps(everything, runs, caplog):
    caplog.set_level(logging.INFO)
    first, watching = run(everything, runs, Finishing()), Watching()
    again = run(everything, runs, watching)
    assert watching.steps == []
    assert (again.steps, again.total_steps, again.reports) == (3, 6, first.reports)
    assert caplog.messages[-1] == (
        f"Reusing the finished run, after step 3 of 6: {first.checkpoint}"
    )
    made = json.loads((only_run(runs) / "manifest.json").read_text())["result"]
    assert (made["steps"], made["total_steps"]) == (3, 6)


def keeping(config: TrainingConfig, **changes: object) -> TrainingConfig:
    output = replace(config.output, keep_state=True)
    return replace(config, output=output, **changes)


def test_more_steps_resume_from_the_state_of_a_shorter_run(everything, runs, caplog):
    caplog.set_level(logging.INFO)
    whole = run(replace(everything, steps=9), None)
    short = run(keeping(everything), runs)
    (state,) = runs.glob("*/states/*.pt")
    assert state.name.startswith("step000006-")
    watching = Watching()
    result = run(keeping(everything, steps=9), runs, watching, on_existing="resume")
    assert watching.steps == [7, 8, 9]
    assert "Resuming after step 6 of the run of 6 steps." in caplog.messages
    assert same(result, whole)
    assert [report.total_steps for report in result.reports] == [9] * 9
    assert run(everything, runs).checkpoint == short.checkpoint
    assert run(replace(everything, steps=9), runs).checkpoint == result.checkpoint
    names = [path.name[:10] for path in runs.glob("*/states/*.pt")]
    assert sorted(names) == ["step000006", "step000009"]


def test_fewer_steps_reuse_the_state_of_a_longer_run(config, runs):
    config = config.replace({"steps": 9, "output": {"state_every": 2}})
    stop(config, runs, step=5)
    watching = Watching()
    result = run(replace(config, steps=4), runs, watching)
    assert watching.steps == []
    assert same(result, run(replace(config, steps=4), None))
    watching = Watching()
    run(config, runs, watching)
    assert watching.steps == [6, 7, 8, 9]


def test_more_steps_start_over_with_a_warning_if_the_shorter_run_kept_no_state(
    config, runs, caplog
):
    run(config, runs)
    watching = Watching()
    run(replace(config, steps=3), runs, watching)
    assert watching.steps == [1, 2, 3]
    assert caplog.messages == [
        "A run of 2 steps with the same settings exists, but it kept no state to continue from "
        "(output.keep_state). Training starts at step 1."
    ]
    with pytest.raises(ValueError) as caught:
        run(replace(config, steps=4), runs, on_existing="resume")
    assert str(caught.value).endswith(
        " The most recent run there differs in: steps. Set on_existing to reuse to start a new run."
    )


def test_retraining_does_not_use_the_state_of_a_shorter_run(config, runs):
    run(keeping(config), runs)
    watching = Watching()
    run(replace(config, steps=3), runs, watching, on_existing="retrain")
    assert watching.steps == [1, 2, 3]


def test_a_run_that_was_finished_early_can_be_resumed(everything, runs, caplog):
    caplog.set_level(logging.INFO)
    early = run(keeping(everything), runs, Finishing())
    watching = Watching()
    whole = run(keeping(everything), runs, watching, on_existing="resume")
    assert watching.steps == [4, 5, 6]
    assert same(whole, run(everything, None))
    assert (whole.steps, whole.checkpoint.name) == (6, "dog_00001.safetensors")
    assert early.checkpoint.exists()
    caplog.clear()
    assert run(everything, runs, on_existing="resume").checkpoint == whole.checkpoint


def test_a_run_that_was_finished_early_without_a_state_cannot_be_resumed(everything, runs):
    run(everything, runs, Finishing())
    with pytest.raises(ValueError, match="^This run was finished early") as caught:
        run(everything, runs, on_existing="resume")
    assert str(caught.value) == (
        "This run was finished early, after step 3 of 6, and cannot be resumed, because it kept no "
        "state (output.keep_state). Set on_existing to reuse to get its result, or to retrain to "
        "start over."
    )


class Told(Finishing):
    """Records what is reported of the run besides its steps."""

    def __init__(self, stop_at: int = 0) -> None:
        super().__init__(stop_at)
        self.told: list[object] = []

    def wants_to_finish(self):
        return not self.stop_at and super().wants_to_finish()

    def on_run(self, folder):
        self.told.append(folder.name)

    def on_resume(self, reports, scores):
        self.told.append([report.step for report in reports])

    def on_early_end(self, message):
        self.told.append(message)


def told(config: TrainingConfig, runs: Path, stop_at: int = 0) -> list[object]:
    observer = Told(stop_at)
    try:
        run(config, runs, observer)
    except KeyboardInterrupt:
        observer.told.append("stopped")
    return observer.told


def test_the_observer_hears_of_the_run_and_how_to_continue_it(everything, runs):
    kept = keeping(everything)
    first = told(kept, runs, stop_at=2)
    name = only_run(runs).name
    stopped = "Stopped after step 2. Run the same again to resume from there."
    early = "Finished early, after step 3 of 6. Set on_existing to resume to continue from there."
    assert first == [name, stopped, "stopped"]
    assert told(kept, runs) == [name, [1, 2], early]
    assert told(kept, runs) == [name, early], "found again"


def test_the_observer_hears_that_a_run_finished_early_cannot_continue(everything, runs):
    early = (
        "Finished early, after step 3 of 6. It kept no state to continue from, because keep_state "
        "was off. Set on_existing to retrain to start over."
    )
    assert told(everything, runs)[1:] == told(everything, runs)[1:] == [early]


def test_the_observer_hears_of_no_early_end_if_all_steps_were_made(config, runs):
    observer = Told(stop_at=-1)
    run(config, runs, observer)
    run(config, runs, observer)
    assert observer.told == [only_run(runs).name] * 2


def test_keep_state_on_a_finished_run_without_one_is_a_warning(config, runs, caplog):
    run(config, runs)
    run(keeping(config), runs)
    assert caplog.messages == [
        "This run was finished without output.keep_state, so it has no state to continue from."
    ]


def test_settings_that_only_save_memory_resume_from_the_state(everything, runs):
    """They change results by rounding only."""
    whole = run(everything, None)
    stop(everything, runs, step=3)
    watching = Watching()
    thrifty = replace(
        everything, gradient_checkpointing=True, batch_size=2, gradient_accumulation=1
    )
    result = run(thrifty, runs, watching)
    assert watching.steps == [4, 5, 6]
    losses = [[report.loss for report in each.reports] for each in (result, whole)]
    assert losses[0][:3] == losses[1][:3]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_without_its_checkpoint_a_finished_run_is_trained_again(config, runs, caplog):
    first = run(config, runs)
    tensors = load_file(first.checkpoint)
    first.checkpoint.unlink()
    second = run(config, runs)
    assert not second.reused
    assert all(torch.equal(t, tensors[n]) for n, t in load_file(second.checkpoint).items())
    assert caplog.messages == [
        f"This run is finished, but its file '{first.checkpoint}' is missing or has changed. "
        "Training it again."
    ]
    assert logged_steps(runs) == [1, 2]


def test_retraining_keeps_the_finished_checkpoint(config, runs):
    first, watching = run(config, runs), Watching()
    second = run(config, runs, watching, on_existing="retrain")
    assert watching.steps == [1, 2]
    assert first.checkpoint.exists()
    assert second.checkpoint.name == "dog_00001.safetensors"
    assert run(config, runs).checkpoint == second.checkpoint
    stop(config.replace({"seed": 1}), runs, step=1)
    watching = Watching()
    run(config.replace({"seed": 1}), runs, watching, on_existing="retrain")
    assert watching.steps == [1, 2]


def test_the_base_model_is_hashed_once(config, runs, monkeypatch):
    """It has 2 to 7 GB, so its hash is stored in the folder of runs for other processes."""
    hashed = []
    whole = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda path: hashed.append(path) or whole(path))
    monkeypatch.setattr(files, "_HASHES", {})
    first = run(config, runs)
    assert hashed == [config.base, first.checkpoint]
    files._HASHES.clear()
    run(config.replace({"seed": 1}), runs)
    assert hashed[2:] == [config.output.folder / "dog_00001.safetensors"]


def test_a_second_run_in_the_same_folder_is_refused(config, runs):
    class Doubling(Observer):
        def on_step(self, report):
            run(config, runs)

    with pytest.raises(RuntimeError, match=r"^Process \d+ is already working on this run in "):
        run(config, runs, Doubling())
    watching = Watching()
    run(config, runs, watching)
    assert watching.steps == [2]


@pytest.mark.posix
def test_an_output_folder_that_is_a_file_is_refused_before_the_first_step(config, runs):
    config.output.folder.write_text("in the way")
    watching = Watching()
    with pytest.raises(OSError) as caught:
        run(config, runs, watching)
    assert str(caught.value) == (
        f"Cannot write to the folder '{config.output.folder}': [Errno 17] File exists: "
        f"'{config.output.folder}'. Make it writable, or choose another folder."
    )
    assert not watching.started


def test_no_step_is_lost_if_the_checkpoint_cannot_be_written(config, runs):
    class Losing(Watching):
        """The output folder disappears during the run."""

        def on_step(self, report):
            super().on_step(report)
            if report.step == 2:
                config.output.folder.rmdir()
                config.output.folder.write_text("in the way")

    with pytest.raises(FileExistsError):
        run(config, runs, Losing())
    config.output.folder.unlink()
    watching = Watching()
    assert run(config, runs, watching).checkpoint.exists()
    assert watching.steps == []


def test_setting_the_clock_back_changes_nothing(everything, runs):
    """The run seems to have started in the future, and its newest state to be the oldest."""
    config = replace(everything, output=replace(everything.output, state_every=2))
    whole = run(config, None)
    stop(config, runs, step=5)
    manifest = only_run(runs) / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "started": "2100-01-01T00:00:00+00:00"}))
    for path in runs.glob("*/states/*.pt"):
        age = int(path.name[4:10])
        os.utime(path, (4_000_000_000 - age, 4_000_000_000 - age))
    watching = Watching()
    assert same(run(config, runs, watching), whole)
    assert watching.steps == [6]


@pytest.mark.posix
def test_no_step_and_no_older_state_is_lost_if_a_state_does_not_fit(
    config, runs, caplog, file_size_limit
):
    class Filling(Watching):
        def on_step(self, report):
            super().on_step(report)
            if report.step == 3:
                self.limit = file_size_limit(100_000)
                self.limit.__enter__()

    caplog.set_level(logging.WARNING)
    config = config.replace({"steps": 4, "output": {"state_every": 2}})
    filling = Filling(stop_at=4)
    with pytest.raises(KeyboardInterrupt):
        run(config, runs, filling)
    filling.limit.__exit__(None, None, None)
    assert caplog.messages == [
        "Could not save the state of step 4; the state of step 2 is kept: [Errno 27] File too "
        f"large: '{next(runs.glob('*/states'))}'",
        "Stopped after step 4. Run the same again to resume from step 2.",
    ]
    watching = Watching()
    run(config, runs, watching)
    assert watching.steps == [3, 4]


def test_intermediate_checkpoints_are_counted_across_sessions(config, runs):
    config = config.replace({"steps": 4, "output": {"save_every": 1, "keep": 2}})
    stop(config, runs, step=3)
    result = run(config, runs)
    assert sorted(path.name for path in config.output.folder.iterdir()) == [
        "dog-step000002.safetensors", "dog-step000004.safetensors", "dog.safetensors",
    ]  # fmt: skip
    saved = config.output.folder / "dog-step000002.safetensors"
    assert result.saves == [{"checkpoint": saved}]
    assert run(config, runs).saves == result.saves
    saved.unlink()
    found = run(config, runs)
    assert (found.reused, found.saves) == (True, [])


def test_an_intermediate_checkpoint_deleted_between_sessions_is_left_out(config, runs):
    config = config.replace({"steps": 5, "output": {"save_every": 1, "keep": 5}})
    stop(config, runs, step=4)
    (config.output.folder / "dog-step000001.safetensors").unlink()
    # The run was stopped before step 4 was saved, and step 5 is the result.
    names = [save["checkpoint"].name for save in run(config, runs).saves]
    assert names == ["dog-step000002.safetensors", "dog-step000003.safetensors"]
