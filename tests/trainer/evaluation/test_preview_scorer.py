"""Whole runs on a tiny checkpoint with the toy's encoder or fixed embeddings: scores, warnings and
the best step. `benchmarks/best_step.py` measures how well the best step is chosen."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.evaluation import best_step, metrics
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    ScoringConfig,
    TrainingConfig,
)
from trainer.toy.judge import Judge
from trainer.training.session import Session

CPU = torch.device("cpu")


@pytest.fixture
def config(tiny_checkpoint, tmp_path) -> TrainingConfig:
    """Six steps on two photos, scored after every second one."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, color in enumerate([(0, 150, 150), (225, 30, 150)]):
        Image.new("RGB", (32, 32), color).save(folder / f"{number}.png")
    sampling = SamplingConfig(steps=2, guidance_scale=1)
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(folder,), prompt="a photo of sks cup", resolution=32),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        preview=PreviewConfig(
            prompts=("a cup on the beach", "a cup at night"), every=2, sampling=sampling
        ),
        scoring=ScoringConfig(class_prompt="a photo of a cup", num_class_images=2),
        output=OutputConfig(folder=tmp_path / "out", name="cup", dtype="fp32", state_every=1),
        steps=6,
        batch_size=1,
    )


class Fixed:
    """Embeds each set of images as one direction: an angle of 0 for the base model and the class,
    of 90 degrees for the photos, and the given shares of that for the previews of each scoring."""

    def __init__(self, *learned: float) -> None:
        self._learned = [None, None, None, *[x for share in learned for x in (share, None)]]
        """By call: base previews, base class images, photos; then previews, class images, ..."""
        self._number = 0

    def embed_images(self, images):
        place = min(self._number, len(self._learned) - 1)
        share, self._number = self._learned[place], self._number + 1
        angle = (np.pi / 2) * (1.0 if place == 2 else share or 0.0)
        row = [np.cos(angle), np.sin(angle)]
        return torch.tensor([row] * len(images))

    def embed_prompts(self, prompts):
        return None


def run(config: TrainingConfig, judge=None, observer: Observer | None = None, **options):
    load_encoder = (lambda: judge) if judge else None
    return train(
        config, FullFineTune(), device=CPU, observer=observer, load_encoder=load_encoder, **options
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def same(one: Path, other: Path) -> bool:
    first, second = load_file(one), load_file(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_scoring_does_not_change_the_run(config):
    plain = run(replace(config, preview=PreviewConfig()))
    scored = run(config, Judge())
    assert [report.loss for report in scored.reports] == [report.loss for report in plain.reports]
    assert same(scored.checkpoint, plain.checkpoint)
    assert [report.step for report in scored.scores] == [0, 2, 4, 6]


def test_scores_are_those_of_the_previews(config):
    previews = {}

    class Watching(Observer):
        def on_preview(self, step, images):
            previews[step] = images

    result = run(config, Judge(), Watching())
    assert {len(images) for images in previews.values()} == {2}
    judge = Judge()
    photos = [np.array(Image.open(p)) for p in sorted(config.dataset.photos[0].iterdir())]
    assert [report.step for report in result.scores] == [0, 2, 4, 6]
    for report in result.scores[1:]:
        seen, known = judge.embed_images(previews[report.step]), judge.embed_images(photos)
        assert report.subject == pytest.approx(metrics.subject_fidelity(seen, known), abs=1e-6)
        prompts = judge.embed_prompts(config.preview.prompts)
        assert report.prompt == pytest.approx(metrics.prompt_fidelity(seen, prompts), abs=1e-6)


def test_the_best_step_is_kept_beside_the_last(config, tmp_path):
    result = run(config, Fixed(0.5, 0.9, 0.4))
    assert result.best_step == 4
    assert names(tmp_path / "out") == ["cup-best.safetensors", "cup.safetensors"]
    assert result.best_checkpoint.name == "cup-best.safetensors"
    four = run(replace(config, steps=4, preview=PreviewConfig()))
    assert same(result.best_checkpoint, four.checkpoint)
    assert not same(result.best_checkpoint, result.checkpoint)


def test_the_last_step_is_not_written_twice(config, tmp_path):
    result = run(config, Fixed(0.2, 0.5, 0.9))
    assert result.best_step == 6
    assert names(tmp_path / "out") == ["cup.safetensors"]
    assert result.best_checkpoint == result.checkpoint


def test_the_last_step_is_always_scored(config):
    result = run(replace(config, steps=5), Judge())
    assert [report.step for report in result.scores] == [0, 2, 4, 5]


def test_overfitting_is_warned_about_once(config, caplog):
    class Drifting(Fixed):
        """The class follows the previews from the second scoring on."""

        def embed_images(self, images):
            if self._number in (6, 8, 10):
                self._learned[self._number] = 0.5
            return super().embed_images(images)

    caplog.set_level(logging.WARNING)
    run(config, Drifting(0.8, 0.8, 0.8))
    (warning,) = [message for message in caplog.messages if "Overfitting" in message]
    assert warning.startswith(
        "Overfitting since step 4: likeness has stopped improving while prompt or class scores "
        "fall. Best: step 2: "
    )


def test_previews_of_the_base_model_are_required(config, monkeypatch):
    monkeypatch.setattr(Session, "draw", lambda *_: [])
    with pytest.raises(ValueError, match="base model") as error:
        run(config, Judge())
    assert str(error.value) == (
        "The base model's previews could not be drawn, so there is nothing to compare scores with; "
        "the warning before this explains why. Choose no judge to train without scores."
    )


class _StopAt(Observer):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, report):
        if report.step == self._step:
            raise KeyboardInterrupt


def test_a_resumed_run_keeps_its_scores_and_its_best_step(config, tmp_path):
    whole = run(config, Judge(), runs=tmp_path / "whole")
    (tmp_path / "second").mkdir()
    output = replace(config.output, folder=tmp_path / "second")
    again = replace(config, output=output)
    with pytest.raises(KeyboardInterrupt):
        run(again, Judge(), _StopAt(5), runs=tmp_path / "runs")
    resumed = run(again, Judge(), runs=tmp_path / "runs")
    assert resumed.scores == whole.scores
    assert names(output.folder) == names(config.output.folder)
    assert same(resumed.best_checkpoint, whole.best_checkpoint)
    found = run(again, Judge(), runs=tmp_path / "runs")
    assert found.reused
    assert found.scores == whole.scores
    assert found.best_checkpoint == resumed.best_checkpoint


def test_scores_of_different_encoders_are_not_mixed(config, tmp_path, caplog):
    with pytest.raises(KeyboardInterrupt):
        run(config, Judge(), _StopAt(5), runs=tmp_path / "runs")
    result = run(config, Fixed(0.9), runs=tmp_path / "runs")
    assert [report.step for report in result.scores] == [0, 6]
    assert caplog.messages[-1] == (
        "The scores up to step 4 come from another judge or other prompts and cannot be compared. "
        "Scoring starts over."
    )


def test_a_run_that_was_finished_without_scores_says_so(config, tmp_path, caplog):
    run(config, runs=tmp_path / "runs")
    result = run(config, Judge(), runs=tmp_path / "runs")
    assert result.reused
    assert list(result.scores) == []
    assert caplog.messages[-1] == (
        "This run was trained without scoring, so it has no scores and no best step. Set "
        "on_existing to retrain to get them."
    )


def test_scoring_without_previews_is_refused_before_anything_is_loaded(config):
    with pytest.raises(ValueError, match="judge") as error:
        run(replace(config, preview=PreviewConfig()), Judge())
    assert str(error.value) == (
        "Scoring needs previews, but preview.prompts is empty. Write four or more prompts that "
        "show the subject in different places, or choose no judge."
    )


def test_previews_that_cannot_be_embedded_are_only_not_scored(config, caplog):
    class Blind(Fixed):
        def embed_images(self, images):
            seen = super().embed_images(images)
            return seen * 0 if self._number == 4 else seen

    result = run(config, Blind(0.5, 0.6, 0.7))
    assert [report.step for report in result.scores] == [0, 4, 6]
    assert caplog.messages[-1].startswith("The previews of step 2 are not scored. ")


def test_the_class_prompt_is_that_of_the_class_images_unless_named(config):
    scoring = replace(config.scoring, class_prompt="", num_class_images=3)
    prior = PriorConfig(prompt="a photo of a cup")
    counts = []

    class Counting(Judge):
        def embed_images(self, images):
            counts.append(len(images))
            return super().embed_images(images)

    result = run(replace(config, scoring=scoring, prior=prior, steps=2), Counting())
    assert None not in [report.class_kept for report in result.scores]
    assert counts == [2, 3, 2, 2, 3], "previews, class images, photos; previews, class images"


def test_without_a_class_prompt_the_class_is_not_scored(config):
    scoring = replace(config.scoring, class_prompt="")
    result = run(replace(config, scoring=scoring), Judge())
    assert {(report.prior, report.class_kept) for report in result.scores} == {(None, None)}
    assert best_step.best(result.scores) is None or result.best_step > 0
