"""Linear layers and convolutions whose frozen weights are stored in 8 bits: each output channel as
integers times a scale. That rounds a weight by about 1 % of the standard deviation of its channel.

Each pass restores the weight of one layer at a time, and the backward pass restores it again, so
that the graph keeps no restored weight. Gradients of inputs are those of the rounded weights.

Shapes: a weight's [out, in] or [out, in, height, width], r vectors."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

LARGEST = 127
SCALE_DTYPE = torch.bfloat16
"""The product of an 8-bit integer and a scale has this format. It has the range of fp32, so that no
scale is too small."""


class _Linear(nn.Linear):
    scale: Tensor
    """[out, 1]."""
    dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        return _apply(_LinearFunction, input.to(self.dtype), self.weight, self.scale, self.bias)


class _Conv2d(nn.Conv2d):
    scale: Tensor
    """[out, 1, 1, 1]."""
    dtype: torch.dtype

    def forward(self, input: Tensor) -> Tensor:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return _apply(
            _Conv2dFunction, input.to(self.dtype), self.weight, self.scale, self.bias, options
        )


_KINDS: dict[type[nn.Module], type[_Linear | _Conv2d]] = {nn.Linear: _Linear, nn.Conv2d: _Conv2d}


def is_held(layer: nn.Module) -> TypeGuard[_Linear | _Conv2d]:
    """Whether a layer's weight is stored in 8 bits."""
    return isinstance(layer, (_Linear, _Conv2d))


def layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of a module whose weights can be stored in 8 bits, by the names of the weights."""
    return {
        f"{path}.weight": layer
        for path, layer in module.named_modules()
        if type(layer) in _KINDS or is_held(layer)
    }


@torch.no_grad()
def hold(layer: nn.Module, values: Tensor, dtype: torch.dtype) -> nn.Parameter:
    """Let a layer hold these values [fp32] as its weight, in 8 bits and frozen, and compute in a
    dtype from now on. Returns the new parameter. Overwrites `values`."""
    largest = values.abs().amax(dim=tuple(range(1, values.ndim)), keepdim=True)
    scale = (largest / LARGEST).clamp(min=torch.finfo(SCALE_DTYPE).tiny).to(SCALE_DTYPE)
    integers = values.div_(scale.float()).round_().clamp_(-LARGEST, LARGEST).to(torch.int8)
    held: Any = layer
    # As torch's own parametrizations do: the layer keeps its hooks and its place in the network.
    held.__class__ = _KINDS.get(type(layer), type(layer))
    held.weight = nn.Parameter(integers, requires_grad=False)
    held.register_buffer("scale", scale, persistent=False)
    held.dtype = dtype
    return held.weight


def values(layer: nn.Module) -> Tensor:
    """The values of a layer's weight in fp32, in 8 bits or not."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if is_held(layer):
        return _restored(weight, layer.scale, torch.float32)
    return weight.detach().float()


def rows(vectors: Tensor, layer: nn.Module) -> Tensor:
    """The sums of a weight's rows, weighted by vectors [r, out]: [r, in * height * width], in the
    format that the layer computes with."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if is_held(layer):
        return _apply(_RowsFunction, vectors.to(layer.dtype), weight, layer.scale)
    return vectors.to(weight.dtype) @ weight.flatten(1)


def _apply(function: Any, *arguments: Any) -> Tensor:
    found: Tensor = function.apply(*arguments)
    return found


def _restored(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (weight * scale).to(dtype)


def _saved(ctx: Any, dtype: torch.dtype) -> Tensor:
    """The weight whose 8 bits a function saved."""
    weight, scale = ctx.saved_tensors
    return _restored(weight, scale, dtype)


class _LinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(inputs, _restored(weight, scale, inputs.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] @ _saved(ctx, gradients[0].dtype), None, None, None


class _Conv2dFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        scale: Tensor,
        bias: Tensor | None,
        options: tuple[Any, ...],
    ) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.shape, ctx.options = inputs.shape, options
        return F.conv2d(inputs, _restored(weight, scale, inputs.dtype), bias, *options)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight = _saved(ctx, gradients[0].dtype)
        found = conv2d_input(  # type: ignore[no-untyped-call]
            ctx.shape, weight, gradients[0], *ctx.options
        )
        return found, None, None, None, None


class _RowsFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vectors: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return vectors @ _restored(weight, scale, vectors.dtype).flatten(1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        weight = _saved(ctx, gradients[0].dtype).flatten(1)
        return gradients[0] @ weight.t(), None, None
