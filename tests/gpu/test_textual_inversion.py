"""Textual inversion on a CUDA device learns the same vectors as on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.loop import train
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import OptimizerConfig

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
METHOD = TextualInversion(placeholder="<tok>", initializer="dog", num_vectors=2)
TOKEN_EMBEDDINGS = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"


@pytest.fixture
def config(config):
    return replace(config, optimizer=OptimizerConfig(learning_rate=1e-2))


def learn(config, device, folder: Path) -> tuple[torch.Tensor, list[float]]:
    """Train an embedding, and return its vectors and the losses."""
    output = replace(config.output, folder=folder)
    result = train(replace(config, output=output), METHOD, device=device)
    return load_file(result.embedding)["clip_l"], [report.loss for report in result.reports]


def test_the_vectors_match_those_of_the_cpu(config, device, exact, tmp_path):
    expected, expected_losses = learn(config, CPU, tmp_path / "cpu")
    found, losses = learn(config, device, tmp_path / "device")
    assert losses == pytest.approx(expected_losses, rel=2e-3)
    # Each of the four steps moves a number by about the learning rate, 0.01.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_low_precision_comes_close(config, device, tmp_path, name):
    expected = learn(config, CPU, tmp_path / "cpu")[1]
    losses = learn(replace(config, precision=name), device, tmp_path / "device")[1]
    assert losses == pytest.approx(expected, rel=1e-2)


def test_dreambooth_continues_to_train_the_vectors(config, run, device, tmp_path):
    learn(config, device, tmp_path / "embeddings")
    (path,) = (tmp_path / "embeddings").glob("*.safetensors")
    dataset = replace(config.dataset, prompt="a photo of <tok>")
    config = replace(
        config, dataset=dataset, embedding=path, optimizer=OptimizerConfig(learning_rate=1e-3)
    )
    expected, found = (run(config, where, train_embedding=True) for where in (CPU, device))
    assert sorted(found.files) == ["checkpoint", "embedding"]
    for report, other in zip(found.reports, expected.reports, strict=True):
        assert report.loss == pytest.approx(other.loss, rel=2e-3)
    assert not torch.equal(load_file(found.embedding)["clip_l"], load_file(path)["clip_l"])
    assert torch.equal(
        load_file(found.checkpoint)[TOKEN_EMBEDDINGS], load_file(config.base)[TOKEN_EMBEDDINGS]
    )
