"""Which run is opened for which settings and images, and when that is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.examples import find_examples
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.runs.opening import open_run, statuses
from trainer.runs.run import Run
from trainer.runs.untracked_run import UntrackedRun
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig


def draw(folder: Path) -> Path:
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    dataset = DatasetConfig(photos=(draw(tmp_path / "photos"),), prompt="a photo of sks dog")
    return TrainingConfig(base=tiny_checkpoint, dataset=dataset)


@pytest.fixture
def runs(tmp_path) -> Path:
    return tmp_path / "runs"


@contextmanager
def opened(
    config: TrainingConfig, runs: Path | None, on_existing: str = "reuse"
) -> Iterator[Run | UntrackedRun]:
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    method, options = FullFineTune(), {"observer": Observer(), "on_existing": on_existing}
    with open_run(runs, config, method, photos, **options) as run:
        yield run


def folder_of(config: TrainingConfig, runs: Path) -> Path:
    with opened(config, runs) as run:
        return run.folder


def test_without_a_folder_for_runs_nothing_is_kept(config, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with opened(config, None) as run:
        assert (run.result(), run.states, run.steps_made) == (None, None, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_changed_photo_makes_another_run(config, runs):
    first = folder_of(config, runs)
    assert folder_of(config, runs) == first
    Image.new("RGB", (16, 16), "red").save(config.dataset.photos[0] / "0.png")
    assert folder_of(config, runs) != first


def test_a_changed_class_image_makes_another_run(config, runs, tmp_path):
    images = draw(tmp_path / "class")
    prior = PriorConfig(weight=1.0, prompt="a photo of a dog", images=(images,))
    config = replace(config, prior=prior)
    first = folder_of(config, runs)
    assert folder_of(config, runs) == first
    Image.new("RGB", (16, 16), "red").save(images / "0.png")
    assert folder_of(config, runs) != first


def test_class_images_that_are_not_used_make_no_difference(config, runs, tmp_path):
    unused = PriorConfig(weight=0.0, images=(draw(tmp_path / "class"),))
    assert folder_of(replace(config, prior=unused), runs) == folder_of(config, runs)


def test_resume_never_starts_a_new_run(config, runs):
    def refusal(config: TrainingConfig) -> str:
        with (
            pytest.raises(ValueError, match="nothing to resume") as caught,
            opened(config, runs, "resume"),
        ):
            pass
        return str(caught.value)

    start = f"There is nothing to resume: {runs} contains no run with these settings and images."
    assert refusal(config) == f"{start} Set on_existing to reuse to start a new run."
    first = folder_of(config, runs)
    assert refusal(config.replace({"seed": 1, "output": {"dtype": "fp16"}})) == (
        f"{start} The most recent run there differs in: output.dtype, seed. Set on_existing to "
        "reuse to start a new run."
    )
    with opened(config, runs, "resume") as run:
        assert run.folder == first


@pytest.mark.parametrize("has_folder", [True, False])
def test_an_unknown_value_of_on_existing_is_refused(config, runs, has_folder):
    with (
        pytest.raises(ValueError, match="^on_existing") as caught,
        opened(config, runs if has_folder else None, "overwrite"),
    ):
        pass
    assert str(caught.value) == (
        "on_existing must be one of reuse, resume, retrain, got 'overwrite'."
    )


def test_a_run_cannot_be_opened_twice(config, runs):
    with opened(config, runs):
        with pytest.raises(RuntimeError, match=r"^Process \d+ is already working on this run in "):
            folder_of(config, runs)
        folder_of(replace(config, seed=1), runs)
    folder_of(config, runs)


def test_the_status_of_runs_with_other_settings_is_known(config, runs):
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    other = config.replace({"weights": "24 bit", "precision": "bf16"})
    status = statuses(runs, config, FullFineTune(), photos)
    assert [status(each) for each in (config, other)] == ["", ""]
    folder_of(other, runs)
    assert [status(each) for each in (config, other)] == ["", "unfinished"]
    split = other.replace({"batch_size": 1, "gradient_accumulation": other.batch_size})
    assert status(split) == "unfinished"
    assert statuses(None, config, FullFineTune(), photos)(other) == ""
