"""The parts that all training methods share."""

import torch
from torch import nn

from trainer.methods.base import thaw


def test_thawed_parameters_are_fp32_and_trainable_in_place():
    layer = nn.Linear(3, 2).half().requires_grad_(False)
    weight = layer.weight
    parameters = thaw(layer)
    assert parameters[0] is weight is layer.weight
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.requires_grad for parameter in parameters)
