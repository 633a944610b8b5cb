"""Comparisons of checkpoints, schedulers and steps, checked against images drawn one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import families
from trainer.evaluation.comparison import Axes, Candidate, compare, distinct
from trainer.evaluation.scores import ImageScorer
from trainer.observer import Observer
from trainer.sampling.sampler import sample
from trainer.settings.config import SamplingConfig
from trainer.toy.judge import Judge

CPU = torch.device("cpu")
PROMPTS = ("a photo of a red cup", "a photo of a blue cat")


def axes(*paths: Path, **changes) -> Axes:
    candidates = [Candidate(label=path.stem, path=path) for path in paths]
    given = {"schedulers": ["DDIM", "PNDM"], "steps": [4, 6], "prompts": PROMPTS, **changes}
    return Axes(candidates=candidates, **given)


def levels_apart(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_every_combination_starts_from_the_same_noise(tiny_checkpoint: Path):
    comparison = compare(axes(tiny_checkpoint), SamplingConfig(seed=5), device=CPU)
    name = tiny_checkpoint.stem
    assert [row.label for row in comparison.rows] == [
        f"{name}, DDIM, 4 steps", f"{name}, DDIM, 6 steps",
        f"{name}, PNDM, 4 steps", f"{name}, PNDM, 6 steps",
    ]  # fmt: skip
    model = families.load(tiny_checkpoint, CPU)
    alone = sample(model, PROMPTS[1:], SamplingConfig(scheduler="PNDM", steps=4, seed=6))
    # Rounding depends on the batch.
    assert levels_apart(comparison.rows[2].images[1], alone[0]) <= 1
    assert levels_apart(comparison.rows[0].images[1], alone[0]) > 5
    assert len(comparison.images) == 8
    assert comparison.chart() is None
    assert comparison.records()[3] == {"checkpoint": name, "scheduler": "PNDM", "steps": 6}


def test_titles_name_only_what_differs(tiny_checkpoint: Path):
    one = axes(tiny_checkpoint, schedulers=["DDIM"], steps=[4])
    assert one.label(one.candidates[0], "DDIM", 4) == tiny_checkpoint.stem


def test_an_image_scorer_scores_each_row(tiny_checkpoint: Path):
    photos = [np.full((64, 64, 3), (0, 150, 150), np.uint8)]
    image_scorer = ImageScorer(Judge(), photos, PROMPTS)
    plan = axes(tiny_checkpoint, schedulers=["DDIM"])
    comparison = compare(plan, SamplingConfig(), device=CPU, image_scorer=image_scorer)
    for row in comparison.rows:
        assert row.scores == image_scorer.score(row.images)
    assert comparison.records()[0]["subject fidelity"] == pytest.approx(
        np.mean(comparison.rows[0].scores.subject)
    )
    bare = compare(plan, SamplingConfig(), device=CPU)
    assert comparison.grid().height > bare.grid().height
    assert comparison.chart().width == 800


def test_a_side_of_0_pixels_is_the_first_checkpoints_resolution(tiny_checkpoint: Path):
    plan = axes(tiny_checkpoint, schedulers=["DDIM"], steps=[1])
    wide = compare(plan, SamplingConfig(), device=CPU, size=(32, 0))
    assert [image.shape for image in wide.images] == [(16, 32, 3)] * 2


def test_equal_names_are_numbered():
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]


def test_checkpoints_are_loaded_one_after_the_other(tiny_checkpoint: Path):
    loaded = []

    class Listener(Observer):
        def on_load(self, path: Path) -> None:
            loaded.append(path)

    plan = axes(tiny_checkpoint, tiny_checkpoint, schedulers=["DDIM"], steps=[4])
    compare(plan, SamplingConfig(), device=CPU, observer=Listener())
    assert loaded == [tiny_checkpoint] * 2


def test_an_empty_axis_is_refused(tiny_checkpoint: Path):
    with pytest.raises(ValueError, match="steps") as error:
        axes(tiny_checkpoint, steps=[])
    assert str(error.value) == "There are no steps to compare. Name at least one."


def test_an_embedding_whose_placeholder_stands_in_no_prompt_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
):
    """Before a model is loaded."""
    torch.save({"<dog>": torch.zeros(1, 24)}, tmp_path / "my-dog.pt")
    candidate = Candidate(label="x", path=Path("nowhere"), embedding=tmp_path / "my-dog.pt")
    plan = Axes(candidates=[candidate], schedulers=["DDIM"], steps=[4], prompts=["a my-dogs"])
    for sampling in (SamplingConfig(), SamplingConfig(negative_prompt="my-dog", guidance_scale=1)):
        with pytest.raises(ValueError) as caught:
            compare(plan, sampling, device=CPU)
        assert str(caught.value) == (
            "The embedding's placeholder 'my-dog' appears in no prompt, so the embedding would "
            "have no effect. Add it to a prompt, for example 'a photo of my-dog', or use the model "
            "without the embedding."
        )
    followed = replace(plan, candidates=[replace(candidate, path=tiny_checkpoint)])
    for changed, sampling in (
        (replace(followed, prompts=["a photo of my-dog"]), SamplingConfig()),
        (followed, SamplingConfig(negative_prompt="my-dog")),
    ):
        assert compare(changed, sampling, device=CPU).rows


def test_a_prompt_that_is_cut_is_warned_about_once(tiny_checkpoint: Path, caplog):
    plan = axes(
        tiny_checkpoint,
        tiny_checkpoint,
        schedulers=["DDIM"],
        steps=[1],
        prompts=["cup " * 75 + "x"],
    )
    compare(plan, SamplingConfig(), device=CPU)
    (message,) = caplog.messages
    assert message.endswith("Its end is ignored: 'x'. Shorten the prompt.")
    caplog.clear()
    compare(replace(plan, prompts=["cup " * 75]), SamplingConfig(), device=CPU)
    assert caplog.messages == []
