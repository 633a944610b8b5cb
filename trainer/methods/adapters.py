"""Low-rank changes of a model's layers in training (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353;
ranks by timestep as in T-LoRA, arXiv 2507.05964).

Shapes: B batch, r rank, and a weight's [out, in] or [out, in, height, width]."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import eight_bit, precision, weights
from ..families.lora_file import LayerChange

ADAPTER = "lora"
"""The name of an adapter inside its layer, with which it moves between devices."""

NUM_SIGNS = 64
"""Latents whose signs, besides the times, tell one batch from another."""


class Adapter(nn.Module):
    """The change of one linear layer or convolution: `up @ down`, times `scale`."""

    base_squares: Tensor
    """With DoRA: the sums of the squares of the layer's weight for each input [in]."""

    def __init__(
        self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float, *, dora: bool
    ) -> None:
        """Starts without any effect once `reset` was called."""
        super().__init__()
        weight = layer.weight
        ones = (1,) * (weight.ndim - 2)
        self.rank, self.scale = rank, scale
        self.down = nn.Parameter(torch.zeros(rank, *weight.shape[1:]))
        self.up = nn.Parameter(torch.zeros(len(weight), rank, *ones))
        self.magnitude: nn.Parameter | None = None
        self.mask: Tensor | None = None
        """[B, r] factors of the ranks; None: 1."""
        if dora:
            squares = _by_input(eight_bit.values(layer).square())
            self.register_buffer("base_squares", squares, persistent=False)
            self.magnitude = nn.Parameter(squares.sqrt().view(1, -1, *ones))
        self.is_on = True
        self._convolution: dict[str, Any] = {}
        if isinstance(layer, nn.Conv2d):
            names = ("stride", "padding", "dilation")
            self._convolution = {name: getattr(layer, name) for name in names}

    def reset(self, generator: torch.Generator) -> None:
        """Draw the initial values, as kohya's programs and peft do."""
        nn.init.kaiming_uniform_(self.down.data, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up)

    @torch.no_grad()
    def load(self, change: LayerChange) -> None:
        """Start from a LoRA file's values. Its alpha must be that of `scale`."""
        self.down.copy_(change.down)
        self.up.copy_(change.up)
        if self.magnitude is not None and change.magnitude is not None:
            self.magnitude.copy_(change.magnitude.view(self.magnitude.shape))

    def forward(self, inputs: Tensor) -> Tensor:
        """What is added to the layer's output."""
        if self._convolution:
            hidden = F.conv2d(inputs, self.down, **self._convolution)
            return F.conv2d(self._masked(hidden, 1), self.up) * self.scale
        hidden = F.linear(inputs, self.down)
        return F.linear(self._masked(hidden, -1), self.up) * self.scale

    def input_scale(self, layer: nn.Module) -> Tensor:
        """DoRA's factor for each input [1, in, ...]: the trained norms over those of the layer's
        changed weight. Avoids computing that weight: all products have one side of length r."""
        assert self.magnitude is not None
        down, up = self.down.flatten(1), self.up.flatten(1)
        with precision.exact(up.device):
            base = eight_bit.rows(up.t(), layer).float()
            own = (up.t() @ up) @ down
            kernel = self.down[0, 0].numel()
            changes = (down * (2 * self.scale * base + self.scale**2 * own)).view(
                self.rank, -1, kernel
            )
            squares = self.base_squares + changes.sum(dim=(0, 2))
        norms = squares.clamp(min=0).sqrt() + torch.finfo(torch.float32).eps
        return self.magnitude / norms.view(self.magnitude.shape)

    def _masked(self, hidden: Tensor, channel: int) -> Tensor:
        if self.mask is None:
            return hidden
        shape = [len(hidden), *[1] * (hidden.ndim - 1)]
        shape[channel] = self.rank
        return hidden * self.mask.view(shape).to(hidden.dtype)


def attach(layer: nn.Module, adapter: Adapter) -> None:
    """Let an adapter change a layer's output. The layer's own weight stays as it is."""
    layer.add_module(ADAPTER, adapter)
    if adapter.magnitude is not None:
        layer.register_forward_pre_hook(_scale_inputs)
    layer.register_forward_hook(_add_change)


def adapters_in(network: nn.Module) -> list[Adapter]:
    """The adapters of a network's layers."""
    return [module for module in network.modules() if isinstance(module, Adapter)]


@contextmanager
def switched_off(adapters: Sequence[Adapter]) -> Iterator[None]:
    """Inside, the adapters change nothing."""
    for adapter in adapters:
        adapter.is_on = False
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.is_on = True


def _scale_inputs(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not getattr(layer, ADAPTER).is_on:
        return inputs
    scale = getattr(layer, ADAPTER).input_scale(layer)
    first = inputs[0]
    # The inputs of a linear layer have their features last.
    scale = scale.view(-1) if scale.ndim == 2 else scale
    return (first * scale.to(first.dtype), *inputs[1:])


def _add_change(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    adapter: Adapter = getattr(layer, ADAPTER)
    return output + adapter(inputs[0]) if adapter.is_on else output


def _by_input(squares: Tensor) -> Tensor:
    """The sums of a weight's squares for each input [in]."""
    return squares.transpose(0, 1).flatten(1).sum(dim=1)


class RankMasks:
    """Switches off some ranks of a U-Net's adapters in training: at random (dropout), and the more
    the noisier an image is (T-LoRA). A forward pre-hook of the U-Net.

    With a smallest share s, an image at time t of T trains the first s + (1 - s) (1 - t / T) of all
    ranks, rounded down, but at least one."""

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        smallest_share: float,
        dropout: float,
        max_time: float,
        seed: int,
    ) -> None:
        self._adapters = adapters
        self._smallest_share, self._dropout = smallest_share, dropout
        self._max_time, self._seed = max_time, seed
        self._generator = torch.Generator()

    def __call__(self, unet: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        noisy_latents, times = inputs[:2]
        if not torch.is_grad_enabled() or not _has_numbers(times):
            for adapter in self._adapters:
                adapter.mask = None
            return
        ranks = [adapter.rank for adapter in self._adapters]
        by_rank = {rank: self._of_times(rank, times) for rank in {*ranks}}
        masks = [by_rank[rank] for rank in ranks]
        if self._dropout:
            draws = [self._draw(*each) for each in zip(noisy_latents, times.tolist(), strict=True)]
            kept = torch.split(torch.stack(draws).to(times.device), ranks, dim=1)
            masks = [mask * keep for mask, keep in zip(masks, kept, strict=True)]
        for adapter, mask in zip(self._adapters, masks, strict=True):
            adapter.mask = mask

    def _of_times(self, rank: int, times: Tensor) -> Tensor:
        """[B, r], of ones and zeros."""
        smallest = max(1, round(self._smallest_share * rank))
        noise = times.float() / self._max_time
        num_kept = smallest + ((1 - noise) * (rank - smallest)).floor()
        return (torch.arange(rank, device=times.device) < num_kept[:, None]).float()

    def _draw(self, noisy_latents: Tensor, time: float) -> Tensor:
        """For one image and all adapters' ranks [sum of r]: 0 with the probability of dropout,
        otherwise what keeps the average at 1. Depends on the image alone, so that a resumed run
        draws the same, in any batch and any process, and not on how a device rounds."""
        signs = (noisy_latents.flatten()[:NUM_SIGNS] > 0).tolist()
        weights.reseed(self._generator, self._seed, [time], signs)
        draws = torch.rand(sum(a.rank for a in self._adapters), generator=self._generator)
        return (draws >= self._dropout) / (1 - self._dropout)


def _has_numbers(times: Tensor) -> bool:
    """Whether a tensor has memory: operations are counted on some that have none."""
    if not times.is_meta:
        return True
    try:
        times.tolist()
    except (NotImplementedError, RuntimeError):
        return False
    return True
