"""A shortened demo: the embedded model learns the cup, and the report says so."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.observer import Observer
from trainer.toy import MODEL, demo


class Listening(Observer):
    def __init__(self):
        self.losses = []

    def on_step(self, report):
        self.losses.append(report.instance_loss)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A third of the demo's training steps, no class images, and fewer images to score, drawn in
    fewer steps."""
    config = demo.demo_config(tmp_path_factory.mktemp("demo"))
    config = replace(config, steps=100, prior=replace(config.prior, weight=0.0))
    observer = Listening()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SCORED_IMAGES", 12)
        patch.setattr(demo, "SAMPLING", replace(demo.SAMPLING, steps=8))
        report = demo.run_demo(config, torch.device("cpu"), observer)
    return config.output.folder, report, observer.losses


def test_the_subject_is_learned(made):
    _, report, losses = made
    assert report["subject_score_before"] <= 0.1
    assert report["subject_score_after"] >= 0.3
    assert np.mean(losses[-20:]) < np.mean(losses[:20])


def test_the_report_holds_what_the_readme_says(made):
    folder, report, _ = made
    assert json.loads((folder / "report.json").read_text()) == report
    assert set(report) == {
        "subject_score_before", "subject_score_after", "prior_score_before", "prior_score_after",
        "train_seconds", "steps", "checkpoint", "versions",
    }  # fmt: skip
    assert report["steps"] == 100
    assert report["prior_score_before"] >= 0.8


def test_the_checkpoint_has_the_embedded_models_layout(made):
    folder, report, _ = made
    before, after = load_file(MODEL), load_file(folder / report["checkpoint"])
    assert {n: (t.shape, t.dtype) for n, t in after.items()} == {
        n: (t.shape, t.dtype) for n, t in before.items()
    }
    vae = [name for name in before if name.startswith("first_stage_model.")]
    assert vae
    assert all(torch.equal(before[name], after[name]) for name in vae)


def test_the_figures_are_written(made):
    folder, _, _ = made
    for name in ("before_after.png", "loss.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").getcolors(2**24)) > 100
