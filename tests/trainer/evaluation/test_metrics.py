"""Metrics of embeddings with known answers, and compared with independent computations."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.evaluation.metrics import (
    cosines,
    distance_between_means,
    diversity,
    likeness,
    memorisation,
    nearest_photos,
    prior_preservation,
    progress,
    prompt_contrast,
    prompt_fidelity,
    subject_fidelity,
)

EAST, NORTH, NORTH_EAST, WEST = [1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]
HALF = math.sqrt(0.5)
"""cos of 45 degrees."""


def random_embeddings(number: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(number, width)) * rng.uniform(0.01, 100, size=(number, 1)) + 0.3


def cos(one: np.ndarray, other: np.ndarray) -> float:
    """Computed element by element."""
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    lengths = [math.sqrt(sum(float(a) ** 2 for a in vector)) for vector in (one, other)]
    return dot / (lengths[0] * lengths[1])


# ------------------------------------------------------------- known answers


def test_cosines_of_known_directions():
    found = cosines([EAST, NORTH_EAST], [EAST, NORTH, WEST])
    np.testing.assert_allclose(found, [[1, 0, -1], [HALF, HALF, -HALF]], atol=1e-15)


def test_subject_fidelity_is_the_mean_over_all_pairs():
    assert subject_fidelity([EAST], [EAST, EAST]) == 1
    assert subject_fidelity([EAST, NORTH], [EAST]) == pytest.approx(0.5)
    assert subject_fidelity([EAST, NORTH_EAST], [EAST, WEST]) == pytest.approx(0)
    assert subject_fidelity([NORTH_EAST], [EAST, NORTH]) == pytest.approx(HALF)


def test_prompt_fidelity_compares_each_image_with_its_own_prompt():
    assert prompt_fidelity([EAST, NORTH], [EAST, NORTH]) == pytest.approx(1)
    assert prompt_fidelity([EAST, NORTH], [NORTH, EAST]) == pytest.approx(0)
    assert prompt_fidelity([EAST, NORTH], [EAST, NORTH_EAST]) == pytest.approx((1 + HALF) / 2)


def test_prior_preservation_rises_as_the_class_becomes_the_subject():
    photos, other_dogs, collapsed = [EAST, EAST], [NORTH, WEST], [EAST, NORTH_EAST]
    assert prior_preservation(other_dogs, photos) == pytest.approx(-0.5)
    assert prior_preservation(collapsed, photos) == pytest.approx((1 + HALF) / 2)


def test_diversity_is_0_for_equal_images_and_counts_within_prompts():
    assert diversity([EAST, EAST, EAST]) == pytest.approx(0)
    assert diversity([EAST, NORTH]) == pytest.approx(1)
    assert diversity([EAST, WEST]) == pytest.approx(2)
    # East and west have different prompts, and differences between prompts do not count.
    images = [EAST, WEST, EAST, WEST]
    assert diversity(images, ["beach", "snow", "beach", "snow"]) == pytest.approx(0)
    # A prompt with three images has the same weight as one with two; one with a single image none.
    images = [EAST, EAST, EAST, EAST, NORTH, WEST]
    assert diversity(images, ["a", "a", "a", "b", "b", "c"]) == pytest.approx(0.5)


def test_likeness_excludes_each_image_with_itself():
    assert likeness([EAST, NORTH]) == pytest.approx(0)
    assert likeness([EAST, EAST, NORTH]) == pytest.approx(1 / 3)


def test_memorisation_counts_only_the_nearest_photo():
    nearest, found = nearest_photos([EAST, [0.1, 1.0]], [WEST, NORTH, EAST])
    assert nearest.tolist() == [2, 1]
    np.testing.assert_allclose(found, [1, 1 / math.sqrt(1.01)])
    assert memorisation([EAST, NORTH], [WEST, NORTH, EAST]) == pytest.approx(1)
    assert subject_fidelity([EAST, NORTH], [WEST, NORTH, EAST]) == pytest.approx(1 / 6)


# ------------------------------------------------- independent computations

shapes = st.tuples(st.integers(2, 9), st.integers(1, 6), st.integers(1, 12), st.integers(0, 99))


@given(shapes)
def test_all_agree_with_an_independent_computation(shape):
    number, num_photos, width, seed = shape
    images = random_embeddings(number, width, seed)
    photos = random_embeddings(num_photos, width, seed + 1000)
    prompts = random_embeddings(number, width, seed + 2000)
    pairs = [cos(image, photo) for image in images for photo in photos]
    own = [cos(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
    among = [cos(one, other) for one, other in itertools.combinations(images, 2)]
    best = [max(cos(image, photo) for photo in photos) for image in images]
    assert subject_fidelity(images, photos) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert prior_preservation(images, photos) == pytest.approx(np.mean(pairs), abs=1e-6)
    assert prompt_fidelity(images, prompts) == pytest.approx(np.mean(own), abs=1e-6)
    assert likeness(images) == pytest.approx(np.mean(among), abs=1e-6)
    assert diversity(images) == pytest.approx(1 - np.mean(among), abs=1e-6)
    assert memorisation(images, photos) == pytest.approx(np.mean(best), abs=1e-6)


def test_large_sets_agree_with_numpy_functions():
    images, photos = random_embeddings(300, 768, 0), random_embeddings(40, 768, 1)
    units = [array / np.sqrt(np.square(array).sum(1, keepdims=True)) for array in (images, photos)]
    assert subject_fidelity(images, photos) == pytest.approx(
        np.einsum("nd,md->nm", *units).mean(), abs=1e-6
    )
    among = np.corrcoef(np.hstack([units[0], -units[0]]))  # for rows with mean 0, corr is cos
    assert likeness(images) == pytest.approx(
        among[np.triu_indices(len(among), k=1)].mean(), abs=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_and_arrays_have_the_same_scores(dtype):
    images = torch.from_numpy(random_embeddings(6, 16, 0)).to(dtype).requires_grad_()
    photos = torch.from_numpy(random_embeddings(3, 16, 1)).to(dtype)
    expected = subject_fidelity(images.detach().float().numpy(), photos.float().numpy())
    assert subject_fidelity(images, photos) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 99), st.floats(1e-6, 1e6))
def test_the_length_of_embeddings_does_not_count(seed, factor):
    images, photos = random_embeddings(5, 8, seed), random_embeddings(3, 8, seed + 1)
    assert subject_fidelity(factor * images, photos) == pytest.approx(
        subject_fidelity(images, photos), abs=1e-9
    )


# ----------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (
            lambda: subject_fidelity([EAST], [[1.0, 0.0, 0.0]]),
            "Embeddings of width 2 and 3 cannot be compared. Compute them all with the same "
            "encoder.",
        ),
        (
            lambda: subject_fidelity(np.zeros((0, 2)), [EAST]),
            "Embeddings must have the shape [images, width], got [0, 2]. Provide at least one "
            "image.",
        ),
        (
            lambda: subject_fidelity(EAST, [EAST]),
            "Embeddings must have the shape [images, width], got [2]. Provide at least one image.",
        ),
        (
            lambda: memorisation([EAST, [0.0, 0.0]], [EAST]),
            "An embedding is zero, infinite or not a number (NaN), so it has no direction. Check "
            "the images and the encoder's file.",
        ),
        (
            lambda: memorisation([EAST], [[math.nan, 1.0]]),
            "An embedding is zero, infinite or not a number (NaN), so it has no direction. Check "
            "the images and the encoder's file.",
        ),
        (
            lambda: prompt_fidelity([EAST, NORTH], [EAST]),
            "Images [2, 2] and prompts [1, 2] do not match. Provide one prompt for each image, "
            "embedded by the same encoder.",
        ),
        (
            lambda: likeness([EAST]),
            "A single image cannot be compared with others. Provide two or more.",
        ),
        (
            lambda: diversity([EAST, NORTH], ["a", "b"]),
            "No prompt has two or more images, so there is nothing to compare. Draw several images "
            "per prompt.",
        ),
        (
            lambda: diversity([EAST, NORTH], ["a"]),
            "There are 2 images and 1 prompts. Provide one prompt for each image.",
        ),
    ],
)
def test_embeddings_that_cannot_be_compared_are_refused(compute, message):
    with pytest.raises(ValueError) as caught:
        compute()
    assert str(caught.value) == message


def test_prompt_contrast_is_the_own_prompts_cosine_minus_the_others():
    rng = np.random.default_rng(3)
    images, distinct = rng.normal(size=(4, 6)), rng.normal(size=(3, 6))
    prompts = distinct[[0, 0, 1, 2]]  # two images with the first prompt
    by_hand = []
    for i, own in enumerate([0, 0, 1, 2]):
        others = [j for j in range(4) if [0, 0, 1, 2][j] != own]
        mean = np.mean([cos(images[i], prompts[j]) for j in others])
        by_hand.append(cos(images[i], prompts[i]) - mean)
    assert prompt_contrast(images, prompts) == pytest.approx(np.mean(by_hand), abs=1e-6)
    assert prompt_contrast(images[:2], prompts[:2]) is None
    # The same image for each prompt: no prompt is followed.
    same = np.repeat(images[:1], 3, axis=0)
    assert prompt_contrast(same, distinct) == pytest.approx(0, abs=1e-6)


def test_progress_is_the_share_of_the_way_from_start_to_goal():
    rng = np.random.default_rng(4)
    start, goal, images = (rng.normal(size=(n, 5)) + 1 for n in (3, 4, 6))
    mean = {
        name: np.mean([row / np.linalg.norm(row) for row in rows], axis=0)
        for name, rows in (("start", start), ("goal", goal), ("images", images))
    }
    direction = mean["goal"] - mean["start"]
    share = (mean["images"] - mean["start"]) @ direction / np.linalg.norm(direction) ** 2
    assert progress(images, start, goal) == pytest.approx(share, abs=1e-6)
    assert progress(start, start, goal) == pytest.approx(0, abs=1e-6)
    assert progress(goal, start, goal) == pytest.approx(1, abs=1e-6)
    assert distance_between_means(start, goal) == pytest.approx(np.linalg.norm(direction), abs=1e-6)
    # Half start and half goal is half-way.
    half = np.concatenate([start / np.linalg.norm(start, axis=1, keepdims=True)] * 4
                          + [goal / np.linalg.norm(goal, axis=1, keepdims=True)] * 3)  # fmt: skip
    assert progress(half, start, goal) == pytest.approx(0.5, abs=1e-6)


def test_equal_start_and_goal_are_refused():
    with pytest.raises(ValueError, match="start and goal") as error:
        progress(np.eye(2), np.eye(2), np.eye(2) * 3)
    assert str(error.value) == (
        "The embeddings of start and goal are the same or differ in width, so progress between "
        "them cannot be measured. Choose another encoder, or other images."
    )
