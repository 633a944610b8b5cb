"""Counts the memory that the activations of a network take, by running it without numbers.

Under torch's FakeTensorMode a pass computes shapes only: seconds instead of minutes, and no memory.
Every storage is counted from its creation until it is freed. Weights and the optimizer's state are
not part of the count. What is computed from weights alone, such as autocast's copies of them, does
not depend on the batch and is counted apart.

Shapes: B batch, C latent channels, h w latents, L tokens, D width, N moments."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .. import eight_bit, precision
from ..families.compilation import enable_checkpointing
from ..families.shapes import NetworkShape
from .adapters import AdapterShapes, attach_all

BATCH = 2
"""Photos per counted pass. Activations are proportional to it."""
COMPUTED_IN_FP32 = ("GroupNorm", "LayerNorm", "Upsample2D")
"""The layers that CUDA's autocast computes in fp32. The CPU's does not."""
ACTIVATIONS, COPIES, GRADIENTS = range(3)
"""Kinds of storages. Copies are computed from weights alone, mostly by autocast."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass through a network, as far as its memory depends on it."""

    network: NetworkShape
    side: int
    """Width and height of the latents, or of the pixels that a VAE encodes. Unused for a text
    encoder."""
    precision: str = "bf16"
    on_cuda: bool = True
    """Whether autocast acts as on CUDA, rather than as on the CPU."""
    checkpointed: bool = False
    trained: bool = True
    """Whether the weights have gradients."""
    adapters: AdapterShapes = ()
    """Those of the network, which have gradients."""
    text_gradients: bool = False
    """Whether the text encodings have gradients; of a text encoder, the token embeddings."""
    in_8_bits: bool = False
    """Whether weights without gradients are stored in 8 bits."""
    forward_only: bool = False
    decodes: bool = False
    """For a VAE: whether it decodes latents rather than encoding pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """The bytes in use at each of N moments of a pass."""

    activations: np.ndarray
    """[N], per photo."""
    copies: np.ndarray
    """[N]: computed from weights alone, such as autocast's copies of fp32 weights."""
    gradients: np.ndarray
    """[N]: in fp32."""
    arrived: np.ndarray
    """[N]: the number of elements of the weight whose gradient was complete at this moment, or
    0."""
    backward: int
    """The first moment of the backward pass."""

    def peak(self, batch_size: int) -> int:
        """Bytes of activations at their peak."""
        return int(self.activations.max() * batch_size)


class StorageCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, counts the bytes of all storages that come into being, by kind."""

    def __init__(self, existing: Iterable[Tensor] = ()) -> None:
        """`existing`: weights, which are not counted."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = [0, 0, 0]
        self.moments: list[list[int]] = []
        self._sizes = {each.untyped_storage()._cdata: (ACTIVATIONS, 0, 0) for each in existing}
        """Of each storage its kind, size, and the first moment that it was there."""
        self._weights = set(self._sizes)
        """Weights, and what is computed from them alone."""

    @property
    def peak(self) -> int:
        """The largest number of bytes of all kinds together."""
        return max((sum(moment[:3]) for moment in self.moments), default=0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        is_of_weights = given and all(
            each.untyped_storage()._cdata in self._weights for each in given
        )
        kind = COPIES if is_of_weights else ACTIVATIONS
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self._add(each, kind)
        self._note()
        return found

    def note_gradient(self, parameter: Tensor) -> None:
        """Count a parameter's complete gradient as one, from its creation on."""
        assert parameter.grad is not None
        key = parameter.grad.untyped_storage()._cdata
        kind, size, born = self._sizes[key]
        self._sizes[key] = GRADIENTS, size, born
        for moment in (*self.moments[born:], self.bytes):
            moment[kind] -= size
            moment[GRADIENTS] += size
        self._note(arrived=parameter.numel())

    def _add(self, tensor: Tensor, kind: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = kind, storage.nbytes(), len(self.moments)
            self.bytes[kind] += storage.nbytes()
            if kind == COPIES:
                self._weights.add(key)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        kind, size, _ = self._sizes.pop(key)
        self._weights.discard(key)
        self.bytes[kind] -= size

    def _note(self, arrived: int = 0) -> None:
        self.moments.append([*self.bytes, arrived])


class UncountableError(RuntimeError):
    """The installed torch, diffusers or transformers cannot run a network without numbers."""


@cache
def count(each: Pass) -> Trace:
    """The memory of a pass. Takes 1 to 30 seconds, once per process. Raises UncountableError."""
    try:
        return _count(each)
    except Exception as error:  # of any kind: fake tensors are no public part of torch
        raise UncountableError(f"{type(error).__name__}: {error}") from error


def _count(each: Pass) -> Trace:
    with FakeTensorMode(), torch.random.fork_rng(devices=[]):
        network = each.network.build().requires_grad_(each.trained and not each.forward_only)
        _prepare(network, each)
        inputs = _inputs(each)
        counter = StorageCounter((*network.parameters(), *network.buffers()))
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(counter.note_gradient)
        with counter, torch.set_grad_enabled(not each.forward_only):
            with _autocast(each.precision):
                found = _forward(network, each, inputs)
            backward = len(counter.moments)
            if not each.forward_only:
                torch.autograd.backward(found.float().square().mean())
    return _trace(counter, backward)


def _trace(counter: StorageCounter, backward: int) -> Trace:
    moments = np.array(counter.moments, dtype=np.int64)
    return Trace(moments[:, 0] / BATCH, moments[:, 1], moments[:, 2], moments[:, 3], backward)


def _prepare(network: Any, each: Pass) -> None:
    if each.checkpointed:
        enable_checkpointing(network)
    if not each.trained:
        _cast_frozen_weights(network, precision.DTYPES[each.precision], in_8_bits=each.in_8_bits)
    if each.text_gradients and each.network.kind == "text_encoder":
        network.get_input_embeddings().register_forward_hook(_with_gradients)
    attach_all(network, each.adapters)
    if each.on_cuda and each.precision != "fp32":
        for module in network.modules():
            if type(module).__name__ in COMPUTED_IN_FP32:
                module.register_forward_pre_hook(_in_fp32)


def _cast_frozen_weights(network: nn.Module, dtype: torch.dtype, *, in_8_bits: bool) -> None:
    """To the dtypes that `precision.frozen_dtypes` has for a dtype of autocast, or to 8 bits."""
    for layer in eight_bit.layers(network).values() if in_8_bits else ():
        eight_bit.hold(layer, eight_bit.values(layer), dtype)
    for layer in network.modules():
        if isinstance(layer, precision.CAST_BY_AUTOCAST):
            for name, parameter in list(layer.named_parameters(recurse=False)):
                if parameter.is_floating_point():
                    frozen = nn.Parameter(parameter.to(dtype), requires_grad=False)
                    setattr(layer, name, frozen)


def _in_fp32(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    first, *others = inputs
    return (first.float(), *others)


def _with_gradients(module: nn.Module, inputs: Any, found: Tensor) -> None:
    """As learned vectors among the token embeddings have them."""
    found.requires_grad_()


def _autocast(name: str) -> AbstractContextManager[object]:
    """bf16 stands for fp16, too: their numbers are equally large."""
    name = "fp32" if name == "fp32" else "bf16"
    return precision.autocast(name, torch.device("cpu"), keeps_casts=False)


def _inputs(each: Pass) -> dict[str, Any]:
    config = each.network.option
    if each.network.kind == "text_encoder":
        tokens = torch.zeros(BATCH, config("max_position_embeddings"), dtype=torch.long)
        return {"input_ids": tokens}
    if each.network.kind == "vae":
        channels = config("latent_channels") if each.decodes else config("in_channels")
        return {"x": torch.empty(BATCH, channels, each.side, each.side)}
    hidden = torch.empty(BATCH, 77, config("cross_attention_dim"))
    return {
        "sample": torch.empty(BATCH, config("in_channels"), each.side, each.side),
        "timestep": torch.zeros(BATCH, dtype=torch.long),
        "encoder_hidden_states": hidden.requires_grad_(each.text_gradients),
        "added_cond_kwargs": _sizes_and_pooled_text(config)
        if config("addition_embed_type")
        else {},
    }


def _sizes_and_pooled_text(config: Any) -> Mapping[str, Tensor]:
    """What Stable Diffusion XL's U-Net is given besides."""
    sizes = 6
    width = config("projection_class_embeddings_input_dim")
    width -= sizes * config("addition_time_embed_dim")
    return {"text_embeds": torch.empty(BATCH, width), "time_ids": torch.empty(BATCH, sizes)}


def _forward(network: Any, each: Pass, inputs: dict[str, Any]) -> Tensor:
    found: Tensor
    if each.network.kind == "text_encoder":
        outputs = network(**inputs)
        pooled = getattr(outputs, "text_embeds", None)
        found = outputs.last_hidden_state if pooled is None else pooled
    elif each.network.kind == "unet":
        found = network(**inputs).sample
    elif each.decodes:
        found = network.decode(inputs["x"]).sample
    else:
        found = network.encode(inputs["x"]).latent_dist.mean
    return found
