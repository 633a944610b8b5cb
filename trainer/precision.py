"""Mixed precision: the number format of the computation, and of frozen weights. The formats of
trained weights are in `weights.py`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
CAST_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""The layers whose weights autocast casts in each forward pass."""


def dtype_of(precision: str) -> torch.dtype:
    """Raises ValueError for an unknown precision."""
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}.")
    return DTYPES[precision]


def dtype_name(dtype: torch.dtype) -> str:
    """For messages, such as "float8_e4m3fn"."""
    return str(dtype).removeprefix("torch.")


def is_coarse(dtype: torch.dtype) -> bool:
    """Whether the numbers of a dtype are too far apart to store a trained weight."""
    return dtype.itemsize < 2


def check(precision: str, device: torch.device) -> None:
    """Raise ValueError if the device cannot compute in this precision."""
    if precision == "bf16" and not computes_in_bf16(device):
        raise ValueError(
            f"precision is bf16, but {torch.cuda.get_device_name(device)} only emulates it, which "
            "is many times slower. Choose precision fp16."
        )
    if precision == "fp16" and device.type == "mps":
        raise ValueError(
            "precision is fp16, which needs gradient scaling, but Apple GPUs do not support it. "
            "Choose precision fp32 or bf16."
        )


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device supports bf16 in hardware. NVIDIA GPUs do from Ampere (RTX 30) on."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):  # the answer is for the current device
        return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(
    precision: str, device: torch.device, *, keeps_casts: bool = True
) -> AbstractContextManager[object]:
    """Return a context in which matrix products and convolutions use this precision. With
    `keeps_casts`, trained weights are cast once and the copies kept until the context ends, which
    is faster if they are used several times and otherwise only takes memory."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=dtype_of(precision), cache_enabled=keeps_casts)


def exact(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast. The meta device has none."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def decoding(device: torch.device) -> AbstractContextManager[object]:
    """Return a context for decoding latents. It replaces an fp16 autocast with bf16, or with fp32
    if the device has no bf16: in fp16 the VAE's activations overflow and images come out black."""
    if not _is_in_fp16(device):
        return nullcontext()
    has_bf16 = computes_in_bf16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16)


def frozen_dtypes(module: nn.Module, precision: str) -> dict[str, torch.dtype]:
    """The dtype for each weight of a frozen module, by name: that to which autocast would cast it
    in each forward pass. Results are the same with half the memory. Norms and embeddings are in
    fp32, as autocast uses them."""
    return {
        f"{layer_name}.{name}".lstrip("."): (
            dtype_of(precision) if isinstance(layer, CAST_BY_AUTOCAST) else torch.float32
        )
        for layer_name, layer in module.named_modules()
        for name, _ in layer.named_parameters(recurse=False)
    }


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Return a scaler that keeps fp16 gradients from underflowing; disabled in other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def _is_in_fp16(device: torch.device) -> bool:
    if not torch.amp.is_autocast_available(device.type):
        return False
    is_on = torch.is_autocast_enabled(device.type)
    return is_on and torch.get_autocast_dtype(device.type) == torch.float16
