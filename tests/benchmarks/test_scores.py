from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.article.recipes import Recipe
from benchmarks.article.scores import (
    Drawing,
    Point,
    ScoreBook,
    balance,
    colors_shown,
    noise_level,
)
from trainer import families
from trainer.families.base import Conditioning
from trainer.toy import MODEL


def gray(levels: np.ndarray) -> np.ndarray:
    return np.repeat(np.clip(levels, 0, 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def test_noise_level_is_the_standard_deviation_of_the_noise():
    for sigma in (3.0, 8.0, 20.0):
        noise = np.random.default_rng(0).normal(0, sigma, (256, 256))
        assert noise_level(gray(128 + noise)) == pytest.approx(sigma, rel=0.05)


def test_slopes_and_outlines_are_not_noise():
    columns = np.arange(64)[None].repeat(64, axis=0)
    assert noise_level(gray(2.0 * columns)) == 0
    assert noise_level(gray(255.0 * (columns > 30))) == 0


def test_balance_is_a_harmonic_mean():
    assert balance(0.5, 1.0, 0.25) == pytest.approx(3 / (2 + 1 + 4))
    assert balance(0.0, 1.0, 1.0) == 0


def test_every_setting_and_the_seed_change_the_key():
    point = Point(recipe=Recipe())
    others = [
        replace(point, recipe=replace(point.recipe, **{name: value}))
        for name, value in {
            "subject": "subtle cup", "words": "zwx cup", "steps": 299, "of": 400,
            "learning_rate": 1e-4, "class_images": 6, "prior_weight": 0.5, "text_encoder": False,
            "ema": True, "optimizer": "Lion", "precision": "bf16", "inversion_steps": 60,
            "unmasked_weight": 0.1, "random_backgrounds": 8,
            "is_lora": True, "anchor": 1.0, "teacher_weight": 1.0,
        }.items()
    ]  # fmt: skip
    others += [replace(point, draws_colored_cups=True)]
    others += [replace(point, drawing=Drawing(scheduler="DDIM", steps=n)) for n in (5, 10)]
    keys = [each.key(0) for each in [point, *others]] + [point.key(1), point.key(0, is_quick=True)]
    assert len(set(keys)) == len(keys)
    assert point.key(0) == Point(recipe=Recipe(steps=300)).key(0)


def test_newer_settings_at_their_defaults_leave_the_key_as_it_was():
    """The key of the preset with seed 0, from before there were anchors."""
    assert Point(recipe=Recipe()).key(0) == "df208eb04afd6784"


def test_a_model_that_paints_all_cups_red_keeps_one_colour_of_eight():
    """Every prompt gets the same encoding; unchanged, the model paints all of them right."""
    model = families.load(MODEL, torch.device("cpu"))
    assert colors_shown(model, "cup", "striking cup") > 0.95
    red, none = (model.encode_captions([text]) for text in ("a photo of a red cup", ""))
    model.encode_captions = lambda captions: Conditioning.stack(
        [red if c else none for c in captions]
    )
    assert colors_shown(model, "cup", "striking cup") == pytest.approx(3 / 24)


def test_the_book_returns_what_was_added_and_skips_an_incomplete_line(tmp_path: Path):
    book = ScoreBook(tmp_path)
    assert book.read() == {}
    book.add("first", {"subject": 0.5}, {"seed": 0})
    with book.file.open("a", encoding="utf-8") as file:
        file.write('{"key": "torn", "meas\n')
    ScoreBook(tmp_path).add("second", {"subject": 0.25}, {"seed": 1})
    assert book.read() == {"first": {"subject": 0.5}, "second": {"subject": 0.25}}


def test_images_are_read_back_pixel_by_pixel(tmp_path: Path):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    book = ScoreBook(tmp_path)
    book.add_pictures("key", images)
    found = book.picture("key")
    assert len(found) == 5
    assert all(np.array_equal(one, other) for one, other in zip(images, found, strict=True))
