"""Mixed precision: what is computed in which format, and what is refused. tests/gpu checks bf16
support on real GPUs."""

from contextlib import contextmanager
from typing import get_args

import pytest
import torch
from torch import nn

from trainer.precision import DTYPES, autocast, check, decoding, frozen_dtypes, grad_scaler
from trainer.settings.config import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)],
)
def test_matrix_products_use_the_precision(precision, dtype):
    matrix = torch.eye(4)
    with autocast(precision, CPU):
        assert (matrix @ matrix).dtype == dtype
    assert matrix.dtype == torch.float32


def test_casts_of_trained_weights_are_kept_where_they_are_used_several_times():
    weights = torch.eye(4, requires_grad=True)
    for keeps_casts in (True, False):
        with autocast("bf16", CPU, keeps_casts=keeps_casts):
            products = [weights @ weights.detach() for _ in range(2)]
            casts = {product.grad_fn.next_functions[0][0] for product in products}
        assert len(casts) == (1 if keeps_casts else 2)


def test_every_precision_of_the_settings_has_its_dtype():
    assert tuple(DTYPES) == get_args(Precision)


def test_only_fp16_scales_the_loss():
    scales = {p: grad_scaler(p, CPU).scale(torch.ones(())).item() for p in ("fp32", "fp16", "bf16")}
    assert scales["fp32"] == scales["bf16"] == 1
    assert scales["fp16"] > 1


def test_refuses_fp16_on_apple_gpus():
    with pytest.raises(ValueError) as caught:
        check("fp16", torch.device("mps"))
    assert str(caught.value) == (
        "precision is fp16, which needs gradient scaling, but Apple GPUs do not support it. "
        "Choose precision fp32 or bf16."
    )


@pytest.fixture
def cards(monkeypatch):
    """Make torch report two GPUs: an RTX 2080, which emulates bf16, and an RTX 3090, which is the
    current device."""
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
def test_decoding_never_uses_fp16(precision):
    """The CPU supports bf16, which has the range of fp32."""
    huge = torch.full((1, 1), 400.0)  # its square overflows in fp16
    with autocast(precision, CPU), decoding(CPU):
        product = huge @ huge
    assert product.isfinite().all()
    assert product.dtype == (torch.float32 if precision == "fp32" else torch.bfloat16)


def test_fp16_decodes_in_fp32_on_a_device_without_bf16(cards, monkeypatch):
    monkeypatch.setattr("trainer.precision.computes_in_bf16", lambda device: False)
    huge = torch.full((1, 1), 400.0)
    with autocast("fp16", CPU), decoding(CPU):
        assert (huge @ huge).dtype == torch.float32


def test_frozen_layers_are_cast_and_norms_and_embeddings_stay_fp32():
    network = nn.Sequential(nn.Conv2d(4, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 8))
    network.append(nn.Embedding(5, 8)).append(nn.LayerNorm(8))
    dtypes = frozen_dtypes(network, "bf16")
    assert list(dtypes) == [name for name, _ in network.named_parameters()]
    cast = [dtype == torch.bfloat16 for dtype in dtypes.values()]
    assert cast == [True, True, False, False, True, True, False, False, False]
    assert frozen_dtypes(network[0], "fp16") == dict.fromkeys(["weight", "bias"], torch.float16)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError) as caught:
        autocast("fp12", CPU)
    assert str(caught.value) == "precision must be one of fp32, fp16, bf16, got 'fp12'."
    with pytest.raises(ValueError):
        frozen_dtypes(nn.Linear(1, 1), "fp12")
