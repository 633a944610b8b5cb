from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.article.experiments import EXPERIMENTS
from benchmarks.article.recipes import PLACEHOLDER, Recipe, Workshop
from trainer.data.examples import find_photos

PLAIN = Recipe(steps=20, class_images=0, text_encoder=False)


def test_an_intermediate_checkpoint_is_the_model_of_a_shorter_run(tmp_path: Path):
    """Experiments can therefore share runs."""
    workshop = Workshop(folder=tmp_path, is_quick=True)
    own = workshop.model(PLAIN, seed=0).unet.state_dict()
    shared = workshop.model(replace(PLAIN, steps=50, of=100), seed=0).unet.state_dict()
    longer = workshop.model(replace(PLAIN, steps=50), seed=0).unet.state_dict()
    assert all(torch.equal(longer[name], shared[name]) for name in longer)
    assert not all(torch.equal(own[name], shared[name]) for name in own)


def test_textual_inversion_comes_before_the_other_steps(tmp_path: Path):
    workshop = Workshop(folder=tmp_path, is_quick=True)
    recipe = replace(PLAIN, words=PLACEHOLDER, inversion_steps=60)
    model = workshop.model(recipe, seed=0)
    only_word = workshop.model(replace(recipe, steps=0), seed=0)
    name = next(iter(model.learned_vectors[PLACEHOLDER]))
    learned, same = (m.learned_vectors[PLACEHOLDER][name] for m in (model, only_word))
    later = workshop.model(replace(recipe, steps=0, inversion_steps=120), seed=0)
    assert torch.equal(learned, same)
    assert not torch.equal(learned, later.learned_vectors[PLACEHOLDER][name])
    weights = [m.unet.conv_in.weight for m in (model, only_word)]
    assert not torch.equal(*weights)


def test_models_of_one_run_have_the_same_run():
    a, b = replace(PLAIN, steps=50, of=400), replace(PLAIN, steps=400)
    assert a.run == b.run != PLAIN.run
    words = [replace(PLAIN, words=PLACEHOLDER, inversion_steps=n, steps=s)
             for n, s in ((60, 0), (240, 300))]  # fmt: skip
    assert words[0].run == words[1].run


def test_masks_are_used_as_the_recipe_says(tmp_path: Path):
    workshop = Workshop(folder=tmp_path)
    found = {}
    for name, point in EXPERIMENTS["m"].points.items():
        dataset = workshop._config(point.recipe, 0, 300).dataset
        photos = find_photos(dataset)
        masks = sum(photo.mask is not None for photo in photos)
        found[name] = (masks, dataset.unmasked_weight, dataset.random_backgrounds)
    assert found == {
        "five surroundings": (0, 1, 0),
        "one room": (0, 1, 0),
        "masks, weight 0.1": (6, 0.1, 0),
        "masks, weight 0": (6, 0, 0),
        "masks, weight 0.1, 8 colours": (6, 0.1, 8),
    }
