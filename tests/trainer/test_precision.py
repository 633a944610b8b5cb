"""Number formats: what is computed in them, and what is refused. What a real card says of bf16 is
asked in tests/gpu."""

from contextlib import contextmanager
from typing import get_args

import pytest
import torch
from torch import nn

from trainer.precision import DTYPES, autocast, check, decoding, grad_scaler, hold_frozen
from trainer.settings.config import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_matrix_products_are_computed_in_the_format(precision, dtype):
    matrix = torch.eye(4)
    with autocast(precision, CPU):
        assert (matrix @ matrix).dtype == dtype
    assert matrix.dtype == torch.float32


def test_every_precision_of_the_settings_has_its_dtype():
    assert tuple(DTYPES) == get_args(Precision)


def test_only_fp16_scales_the_loss():
    scales = {p: grad_scaler(p, CPU).scale(torch.ones(())).item() for p in ("fp32", "fp16", "bf16")}
    assert scales["fp32"] == scales["bf16"] == 1
    assert scales["fp16"] > 1


def test_refuses_fp16_where_the_loss_cannot_be_scaled():
    with pytest.raises(ValueError) as caught:
        check("fp16", torch.device("mps"))
    assert str(caught.value) == (
        "precision is fp16, which needs gradient scaling, and Apple GPUs have none. Choose "
        "precision fp32 or bf16."
    )


@pytest.fixture
def cards(monkeypatch):
    """A computer with an RTX 2080 and, as the current device, an RTX 3090, as torch tells of them:
    the first emulates bf16."""
    current = ["cuda:1"]

    @contextmanager
    def device(chosen):
        current.append(str(chosen))
        yield
        current.pop()

    def is_bf16_supported(including_emulation=True):
        return including_emulation or current[-1] == "cuda:1"

    names = {"cuda:0": "NVIDIA GeForce RTX 2080", "cuda:1": "NVIDIA GeForce RTX 3090"}
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda chosen: names[str(chosen)])


def test_refuses_bf16_where_it_is_emulated(cards):
    check("bf16", torch.device("cuda:1"))
    check("fp16", torch.device("cuda:0"))
    with pytest.raises(ValueError, match="bf16") as caught:
        check("bf16", torch.device("cuda:0"))
    assert str(caught.value) == (
        "precision is bf16, but NVIDIA GeForce RTX 2080 only emulates it, which is many times "
        "slower. Choose precision fp16."
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_nothing_is_decoded_in_fp16(precision):
    """The CPU has bf16, whose range is fp32's."""
    huge = torch.full((1, 1), 400.0)  # its square times 1 is beyond fp16
    with autocast(precision, CPU), decoding(CPU):
        product = huge @ huge
    assert product.isfinite().all()
    assert product.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)


def test_without_bf16_fp16_decodes_in_fp32(cards, monkeypatch):
    monkeypatch.setattr("trainer.precision.computes_in_bf16", lambda device: False)
    huge = torch.full((1, 1), 400.0)
    with autocast("fp16", CPU), decoding(CPU):
        assert (huge @ huge).dtype == torch.float32


def test_frozen_layers_are_held_in_the_format_and_norms_in_fp32():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 8))
    network.append(nn.Embedding(5, 8)).append(nn.LayerNorm(8))
    hold_frozen(network, "bf16")
    held = [parameter.dtype == torch.bfloat16 for parameter in network.parameters()]
    assert held == [True, True, False, False, True, True, False, False, False]
