"""The toy's encoder on drawings that it was not trained on."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer import toy
from trainer.evaluation import encoders
from trainer.evaluation.metrics import diversity, prompt_fidelity, subject_fidelity
from trainer.evaluation.toy_encoder import ToyEncoder
from trainer.toy import world
from trainer.toy.drawing import SHAPES, draw
from trainer.toy.judge import QUESTIONS, Judge

CPU = torch.device("cpu")


def images_of(scenes):
    return [np.asarray(draw(scene)) for scene in scenes]


def test_embeddings_distinguish_the_subject_from_other_cups():
    rng, judge = random.Random(20_003), Judge()
    photos, others = ([world.subject_scene(rng) for _ in range(20)] for _ in range(2))
    cups = [world.pose(world.random_look(rng), rng, shape="cup") for _ in range(20)]
    photos, others, cups = (judge.embed_images(images_of(s)) for s in (photos, others, cups))
    assert subject_fidelity(others, photos) > subject_fidelity(cups, photos) + 0.15
    assert diversity(cups) > diversity(others) + 0.1


@pytest.mark.parametrize("trait", ["shape", "color", "background"])
def test_a_drawing_is_nearer_to_its_own_prompt_than_to_a_wrong_one(trait):
    rng, judge = random.Random(20_004), Judge()
    scenes = [world.random_scene(rng) for _ in range(200)]
    right, wrong = [], []
    for scene in scenes:
        words = {name: getattr(scene, name) for name in ("color", "shape", "background")}
        right.append("A {color} {shape}, {background}".format(**words))
        others = [answer for answer in QUESTIONS[trait] if answer != words[trait]]
        wrong.append(
            "A {color} {shape}, {background}".format(**{**words, trait: rng.choice(others)})
        )
    drawn = judge.embed_images(images_of(scenes))
    nearer = [
        prompt_fidelity([image], [own]) > prompt_fidelity([image], [other])
        for image, own, other in zip(
            drawn.numpy(), judge.embed_prompts(right).numpy(), judge.embed_prompts(wrong).numpy(),
            strict=True,
        )
    ]  # fmt: skip
    assert np.mean(nearer) >= 0.95


def test_a_prompt_that_names_nothing_of_the_toy_world_is_refused():
    with pytest.raises(ValueError) as caught:
        Judge().embed_prompts(["a red cup", "a photo of sks"])
    assert str(caught.value) == (
        "The prompt 'a photo of sks' names nothing of the toy world. Name a shape "
        f"({', '.join(SHAPES)}), a colour or a background."
    )


def test_embeddings_have_the_shape_that_metrics_need():
    judge: encoders.ImageEncoder = Judge()
    rng = random.Random(20_005)
    drawn = judge.embed_images(images_of([world.random_scene(rng) for _ in range(3)]))
    prompts = judge.embed_prompts(["a cup", "snow", "a blue ball"])
    assert drawn.shape == prompts.shape == (3, 128)
    assert not drawn.requires_grad


def test_images_of_any_size_are_resized():
    small = images_of([world.subject_scene(random.Random(3))])[0]
    large = small.repeat(4, axis=0).repeat(4, axis=1)
    wide = np.concatenate([np.zeros((64, 20, 3), np.uint8), small, np.zeros_like(small)[:, :20]], 1)
    seen = Judge().embed_images([small, large, wide])
    torch.testing.assert_close(seen[0].expand(2, -1), seen[1:])


def test_the_name_toy_loads_the_embedded_encoder(tmp_path):
    assert isinstance(encoders.load(toy.resolve_judge(Path("toy")), CPU), ToyEncoder)
    with pytest.raises(FileNotFoundError):
        encoders.load(toy.resolve_judge(tmp_path / "nothing.safetensors"), CPU)
