from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.article.subjects import (
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
from trainer.data.images import read_image
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
    assert len({verdict.background for verdict in judge.verdicts(images)}) == 5
    again = [path.read_bytes() for path in photos(subject, tmp_path / "elsewhere")]
    assert again == [path.read_bytes() for path in paths]
