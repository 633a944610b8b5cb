"""Number formats of the computation. Weights being trained stay fp32 whatever is chosen here:
rounded to bf16 they would lose 97 in 100 updates at DreamBooth's learning rates."""

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
"""The layers whose weights autocast converts in each pass."""


def check(precision: str, device: torch.device) -> None:
    """Refuse a format that the device cannot compute in."""
    if precision == "bf16" and not computes_in_bf16(device):
        raise ValueError(
            f"precision is bf16, but {torch.cuda.get_device_name(device)} only emulates it, which "
            "is many times slower. Choose precision fp16."
        )
    if precision == "fp16" and device.type == "mps":
        raise ValueError(
            "precision is fp16, which needs gradient scaling, and Apple GPUs have none. "
            "Choose precision fp32 or bf16."
        )


def computes_in_bf16(device: torch.device) -> bool:
    """Whether the device has bf16 in hardware: of NVIDIA's, those from Ampere (RTX 30) on."""
    if device.type != "cuda":
        return True
    with torch.cuda.device(device):  # torch answers for the current device only
        return torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Compute matrix products and convolutions in this format."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def decoding(device: torch.device) -> AbstractContextManager[object]:
    """Inside an fp16 autocast: compute in bf16, or in fp32 where the device has no bf16. The VAE's
    activations exceed what fp16 can hold, and the pictures would come out black."""
    if not _is_in_fp16(device):
        return nullcontext()
    has_bf16 = computes_in_bf16(device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=has_bf16)


def hold_frozen(module: nn.Module, precision: str) -> None:
    """Store the weights of a frozen module as autocast would convert them in each pass: the same
    results, in half the memory. Norms and embeddings stay fp32, as autocast computes with them."""
    for layer in module.modules():
        if isinstance(layer, CAST_BY_AUTOCAST):
            layer.to(DTYPES[precision])


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that fp16 gradients do not vanish; for other formats it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def _is_in_fp16(device: torch.device) -> bool:
    if not torch.amp.is_autocast_available(device.type):
        return False
    is_on = torch.is_autocast_enabled(device.type)
    return is_on and torch.get_autocast_dtype(device.type) == torch.float16
