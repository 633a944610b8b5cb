from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.article.subjects import (
    CUP_IN_ONE_ROOM,
    SUBJECTS,
    SUBTLE_CUP,
    decoded,
    draw_many,
    lookalike,
    other_cup,
    photos,
    shows_subject,
)
from trainer import families
from trainer.data.examples import find_photos
from trainer.data.images import read_image
from trainer.settings.config import DatasetConfig
from trainer.toy import MODEL
from trainer.toy.judge import Judge


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def share(judge: Judge, images: list[np.ndarray]) -> float:
    return float(np.mean(shows_subject(judge, SUBTLE_CUP, images)))


def test_the_subtle_cup_is_distinguished_from_similar_cups(judge: Judge):
    subtle, others, alike = (
        draw_many(make, 100, seed)
        for seed, make in enumerate((SUBJECTS[SUBTLE_CUP], other_cup, lookalike), start=901)
    )
    assert share(judge, subtle) >= 0.95
    assert share(judge, others) <= 0.03
    assert share(judge, alike) <= 0.08


def test_it_is_distinguished_after_the_vae_too(judge: Judge):
    vae = families.load(MODEL, torch.device("cpu"))
    shares = {}
    for seed, make in enumerate((SUBJECTS[SUBTLE_CUP], lookalike), start=905):
        shares[make] = share(judge, decoded(vae, draw_many(make, 40, seed)))
    assert shares[SUBJECTS[SUBTLE_CUP]] >= 0.8
    assert shares[lookalike] <= 0.1


def test_the_classifier_sees_an_ordinary_cup_in_the_subtle_one(judge: Judge):
    verdicts = judge.verdicts(draw_many(SUBJECTS[SUBTLE_CUP], 100, 907))
    assert sum(verdict.shape == "cup" for verdict in verdicts) >= 95
    assert not any(verdict.is_subject for verdict in verdicts)


@pytest.mark.parametrize("subject", list(SUBJECTS))
def test_photos_are_always_the_same_six_of_that_cup(subject: str, judge: Judge, tmp_path: Path):
    paths = photos(subject, tmp_path)
    images = [np.asarray(read_image(path, (255, 255, 255))) for path in paths]
    assert len(set(paths)) == 6
    assert all(shows_subject(judge, subject, images))
    places = {verdict.background for verdict in judge.verdicts(images)}
    assert len(places) == (1 if subject == CUP_IN_ONE_ROOM else 5)
    assert "room" in places
    again = [path.read_bytes() for path in photos(subject, tmp_path / "elsewhere")]
    assert again == [path.read_bytes() for path in paths]


def test_the_masks_of_the_photos_in_one_room_cover_what_differs_between_them(tmp_path: Path):
    """Where no mask is white, all photos show the same room, but for the cup's shadow."""
    found = find_photos(DatasetConfig(photos=photos(CUP_IN_ONE_ROOM, tmp_path), prompt="a cup"))
    images = np.stack([np.asarray(read_image(each.path, (0, 0, 0)), int) for each in found])
    masks = np.stack([np.asarray(read_image(each.mask, (0, 0, 0)), int)[..., 0] for each in found])
    above_the_shadows = masks.max(axis=0) == 0
    above_the_shadows[46:] = False
    assert above_the_shadows.mean() > 0.2
    assert np.ptp(images, axis=0)[above_the_shadows].max() == 0
    assert all(0.05 < (mask > 127).mean() < 0.5 for mask in masks)
