"""Examples that go through the model together. What is drawn for them is in `test_batches.py`."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.data.test_batches import SQUARE, cached, config
from trainer.data.batch import Batch, join
from trainer.data.batches import BatchStream


@pytest.fixture
def batch() -> Batch:
    """Two photos, a class image, and both photos again for the teacher."""
    prior = cached(2, [SQUARE], is_prior=True)
    settings = config(batch_size=2, weight=1.0, teacher=1.0, ratio=0.5)
    (batch,) = next(BatchStream(cached(5, [SQUARE]), prior, settings))
    return batch


def test_a_batch_moves_to_a_device_as_a_whole(batch: Batch) -> None:
    moved = batch.to(torch.device("meta"))
    tensors = (moved.latents, moved.noise, moved.times, moved.weights, moved.is_prior)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert (moved.captions, moved.framings) == (batch.captions, batch.framings)
    assert moved.num_taught == batch.num_taught == 2


def test_photos_and_the_class_are_summed_apart(batch: Batch) -> None:
    assert batch.is_prior.tolist() == [False, False, True, True, True]
    losses = torch.tensor([1.0, 2.0, 10.0, 20.0, 40.0])
    assert batch.sums(losses).tolist() == [3.0, 70.0]


def test_without_loss_only_the_weights_change(batch: Batch) -> None:
    same = batch.without_loss()
    assert same.weights.tolist() == [0.0] * 5
    assert torch.equal(same.latents, batch.latents)
    assert batch.weights.min() > 0


def test_joined_batches_keep_the_order_and_count_the_taught(batch: Batch) -> None:
    both = join([batch, batch])
    assert both.captions == batch.captions * 2
    assert torch.equal(both.noise, torch.cat([batch.noise, batch.noise]))
    assert both.num_taught == 4
    assert both.place_weights is None
