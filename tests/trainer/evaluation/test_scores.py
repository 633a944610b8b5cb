"""Scores compared with numpy, for an encoder whose embeddings are written down here."""

import numpy as np
import pytest
import torch

from trainer.evaluation.scores import ImageScorer, table

SEEN = np.array([[3.0, 0, 0], [1, 1, 0], [0, 2, 2], [0, 0, 1]])
PHOTOS = np.array([[1.0, 0, 0], [0, 1, 0]])
READ = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
PROMPTS = ["a dog", "a dog", "a cat", "a cat"]


class ByBrightness:
    """Takes an image's brightness as the index into `SEEN`, or from 100 on into `PHOTOS`."""

    def embed_images(self, images):
        levels = [int(image.flat[0]) for image in images]
        return torch.tensor(np.array([PHOTOS[i - 100] if i >= 100 else SEEN[i] for i in levels]))

    def embed_prompts(self, prompts):
        return torch.tensor(READ[: len(prompts)])


class WithoutText(ByBrightness):
    def embed_prompts(self, prompts):
        return None


def of_brightness(*levels):
    return [np.full((2, 2, 3), level, np.uint8) for level in levels]


def cos(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_scores_of_each_image_and_their_means():
    scores = ImageScorer(ByBrightness(), of_brightness(100, 101), PROMPTS).score(
        of_brightness(0, 1, 2, 3)
    )
    near = [[cos(seen, photo) for photo in PHOTOS] for seen in SEEN]
    assert scores.subject == pytest.approx(np.mean(near, axis=1), abs=1e-6)
    assert scores.nearest == pytest.approx(np.max(near, axis=1), abs=1e-6)
    assert scores.nearest_photo[0] == 0
    assert scores.nearest_photo[2] == 1
    followed = [cos(seen, read) for seen, read in zip(SEEN, READ, strict=True)]
    assert scores.prompt == pytest.approx(followed, abs=1e-6)
    pairs = [1 - cos(SEEN[0], SEEN[1]), 1 - cos(SEEN[2], SEEN[3])]
    assert scores.means == pytest.approx(
        {
            "subject fidelity": np.mean(near),
            "prompt fidelity": np.mean(followed),
            "memorisation": np.max(near, axis=1).mean(),
            "diversity": np.mean(pairs),
        },
        abs=1e-6,
    )
    assert scores.caption(1) == "subject 0.71, prompt 0.71"


def test_unavailable_scores_are_left_out():
    scores = ImageScorer(WithoutText(), of_brightness(100), ["a dog", "a cat"]).score(
        of_brightness(0, 2)
    )
    assert list(scores.means) == ["subject fidelity", "memorisation"]
    assert scores.caption(0) == "subject 1.00"
    # Without prompts all images count as having the same one, so their diversity is known.
    unknown = ImageScorer(ByBrightness(), of_brightness(100)).score(of_brightness(0, 2))
    assert list(unknown.means) == ["subject fidelity", "memorisation", "diversity"]
    assert unknown.diversity == pytest.approx(1 - cos(SEEN[0], SEEN[2]), abs=1e-6)


def test_the_number_of_prompts_must_match_the_images():
    image_scorer = ImageScorer(ByBrightness(), of_brightness(100), ["a dog", "a dog"])
    with pytest.raises(ValueError, match="prompts") as error:
        image_scorer.score(of_brightness(0))
    assert str(error.value) == (
        "There are 1 images and 2 prompts. Give one prompt for each image, one for all of them, or "
        "none."
    )


def test_one_prompt_may_apply_to_all_images():
    scores = ImageScorer(ByBrightness(), of_brightness(100), ["a dog"]).score(of_brightness(0, 1))
    repeated = ImageScorer(ByBrightness(), of_brightness(100), ["a dog"] * 2).score(
        of_brightness(0, 1)
    )
    assert scores == repeated
    assert scores.diversity is not None


def test_a_table_of_images_and_their_means():
    scores = ImageScorer(ByBrightness(), of_brightness(100), PROMPTS).score(
        of_brightness(0, 1, 2, 3)
    )
    rows = scores.rows(["one", "two", "three", "four"])
    assert rows[-1] == ("mean", scores.means)
    assert rows[1][1] == {
        "subject fidelity": scores.subject[1],
        "prompt fidelity": scores.prompt[1],
        "memorisation": scores.nearest[1],
    }
    assert table([rows[0], ("mean", {"memorisation": 0.5, "diversity": 0.25})]) == "\n".join([
        "      subject fidelity  prompt fidelity  memorisation  diversity",
        "one              1.000            1.000         1.000          -",
        "mean                 -                -         0.500      0.250",
    ])  # fmt: skip
