"""Likeness of images, checked against images drawn one by one."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.trainer.conversion.models import CPU, add_low_rank, changed
from trainer import families, toy
from trainer.conversion.extraction import extract
from trainer.conversion.likeness import BASE, EXTRACTED, TRAINED, Likeness, measure
from trainer.conversion.low_rank import RankRule
from trainer.conversion.pairs import Model
from trainer.evaluation.comparison import Candidate
from trainer.sampling.sampler import sample
from trainer.settings.config import ModelOptions, OutputConfig, SamplingConfig
from trainer.toy.judge import Judge

PROMPTS = ["a photo of a red cup", "a photo of a blue cat"]
SAMPLING = SamplingConfig(steps=3, seed=5, guidance_scale=4.0)


@pytest.fixture
def models(tiny_checkpoint, tmp_path):
    """The three models by name, with a LoRA of rank 2 for a change of rank 4."""
    trained = changed(tiny_checkpoint, tmp_path / "trained.safetensors", add_low_rank(4, 0.05))
    output = OutputConfig(folder=tmp_path, name="lora", dtype="fp32")
    found = extract(Model(tiny_checkpoint), Model(trained), RankRule(rank=2), output)
    return {
        BASE: Candidate(label="x", path=tiny_checkpoint),
        TRAINED: Candidate(label="x", path=trained),
        EXTRACTED: Candidate(
            label="x", path=tiny_checkpoint, options=found.options(ModelOptions())
        ),
    }


def cosine(one, other):
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_pairs_of_images_are_compared(models):
    photos = [np.asarray(Image.open(path)) for path in sorted(toy.PHOTOS.glob("*.png"))]
    judge = Judge()
    found = measure(models, PROMPTS, SAMPLING, judge, device=CPU, photos=photos)
    embeddings = {}
    for name, candidate in models.items():
        model = families.load(candidate.path, torch.device("cpu"), options=candidate.options)
        embeddings[name] = judge.embed_images(sample(model, PROMPTS, SAMPLING)).double().numpy()
    pairs = {
        name: np.mean([*map(cosine, embeddings[name], embeddings[TRAINED])])
        for name in (BASE, EXTRACTED)
    }
    assert found.extracted == pytest.approx(pairs[EXTRACTED], abs=1e-5)
    assert found.base == pytest.approx(pairs[BASE], abs=1e-5)
    assert found.extracted != pytest.approx(found.base, abs=1e-4)
    of_photos = judge.embed_images(photos).double().numpy()
    for name, images in embeddings.items():
        scores = [cosine(image, photo) for image in images for photo in of_photos]
        assert found.subject[name] == pytest.approx(np.mean(scores), abs=1e-5)


def test_a_lora_that_keeps_everything_draws_the_same(models, tmp_path):
    output = OutputConfig(folder=tmp_path, name="all", dtype="fp32")
    base, trained = models[BASE].path, models[TRAINED].path
    lora = extract(Model(base), Model(trained), RankRule(energy=1 - 1e-9), output)
    whole = Candidate(label="x", path=base, options=lora.options(ModelOptions()))
    found = measure({**models, EXTRACTED: whole}, PROMPTS, SAMPLING, Judge(), device=CPU)
    assert found.extracted == pytest.approx(1, abs=1e-3)
    assert found.subject is None


def test_a_description():
    found = Likeness(extracted=0.98765, base=0.5, subject=None)
    assert found.describe() == (
        "Images of the base model with the LoRA have a likeness of 0.988 to those of the trained "
        "checkpoint, and those without it 0.500."
    )
    scored = Likeness(
        extracted=1.0, base=0.5, subject={BASE: 0.1, TRAINED: 0.9, EXTRACTED: 0.8}
    ).describe()
    assert scored.endswith(
        " 0.500. Subject fidelity: base model 0.100, trained checkpoint 0.900, base model with the "
        "LoRA 0.800."
    )
