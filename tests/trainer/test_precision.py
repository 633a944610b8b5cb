"""Number formats: what is computed in them, and what is refused."""

import pytest
import torch

from trainer.precision import autocast, check, grad_scaler

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
