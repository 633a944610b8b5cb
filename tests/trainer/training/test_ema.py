"""The moving average, compared with its recurrence computed by hand."""

import pytest
import torch
from torch import nn

from trainer import weights
from trainer.training.ema import EMA


def test_follows_the_warmed_up_average():
    weight = torch.tensor([0.0])
    ema, expected = EMA([weight], decay=0.3), 0.0
    for n, value in enumerate([1.0, 2.0, 4.0, 8.0], start=1):
        weight.fill_(value)
        ema.update()
        decay = min(0.3, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert ema.averages[0].item() == pytest.approx(expected)


def test_replaces_the_weights_and_restores_them():
    weight = torch.tensor([1.0, 2.0])
    ema = EMA([weight], decay=0.9)
    weight.add_(10)
    with ema.applied():
        assert weight.tolist() == [1.0, 2.0]
    assert weight.tolist() == [11.0, 12.0]
    assert ema.averages[0].tolist() == [1.0, 2.0]


def test_resumes_from_its_state():
    weight = torch.tensor([0.0])
    one, other = EMA([weight], decay=0.3), EMA([weight], decay=0.3)
    weight.fill_(1.0)
    one.update()
    other.load_state(one.state())
    weight.fill_(2.0)
    for ema in (one, other):
        ema.update()
    assert torch.equal(one.averages[0], other.averages[0])
    assert one.averages[0] is not other.averages[0]


def test_reports_whether_it_is_applied():
    ema = EMA([torch.tensor([1.0])], decay=0.9)
    with ema.applied():
        assert ema.is_applied
    assert not ema.is_applied


def test_restores_the_weights_after_an_error():
    weight = torch.tensor([1.0])
    ema = EMA([weight], decay=0.9)
    weight.add_(10)
    with pytest.raises(KeyboardInterrupt), ema.applied():
        raise KeyboardInterrupt
    assert weight.tolist() == [11.0]
    assert not ema.is_applied


@pytest.mark.parametrize(("format", "error"), [("24 bit", 2e-4), ("bf16", 2e-4)])
def test_the_average_of_stored_weights_has_24_bits(format, error):
    """The error is relative to the numbers, whose differences decay into the average. 2e-4 is six
    times the distance of 24-bit numbers, and a twentieth of bf16's."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(1 + torch.rand(64, 64, generator=generator))
    weights.store(parameter, format)
    ema, expected = EMA([parameter], decay=0.9), weights.value(parameter).double()
    for n in range(1, 60):
        weights.write(parameter, 1 + torch.rand(64, 64, generator=generator), generator)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * weights.value(parameter)
        ema.update()
    current = weights.value(parameter)
    with ema.applied():
        assert (weights.value(parameter) - expected).abs().max() < error
    assert torch.equal(weights.value(parameter), current)
