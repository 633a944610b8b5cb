"""The parts that all training methods share."""

from torch import nn

from trainer.methods.base import thaw


def test_thawed_parameters_are_trainable_in_place():
    layer = nn.Linear(3, 2).requires_grad_(False)
    weight = layer.weight
    parameters = thaw(layer)
    assert parameters[0] is weight is layer.weight
    assert len(parameters) == 2
    assert all(parameter.requires_grad for parameter in parameters)
