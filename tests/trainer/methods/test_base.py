"""The parts that all training methods share."""

import pytest
import torch
from torch import nn

from trainer import weights
from trainer.methods.base import thaw


@pytest.mark.parametrize(("format", "dtype"), [("fp32", torch.float32), ("24 bit", torch.bfloat16)])
def test_thawed_parameters_have_the_format_and_are_trainable_in_place(format, dtype):
    layer = nn.Linear(100, 50).half().requires_grad_(False)
    weight, values = layer.weight, layer.weight.detach().float()
    parameters = thaw(layer, format)
    assert parameters[0] is weight is layer.weight
    assert [parameter.dtype for parameter in parameters] == [dtype, torch.float32]
    assert torch.equal(weights.value(weight), values)
    assert all(parameter.requires_grad for parameter in parameters)
