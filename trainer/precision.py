"""Number formats of the computation. Weights being trained stay fp32 whatever is chosen here:
rounded to bf16 they would lose 97 in 100 updates at DreamBooth's learning rates."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def check(precision: str, device: torch.device) -> None:
    """Refuse a format that the device cannot compute in."""
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"precision is bf16, but {torch.cuda.get_device_name(device)} computes in fp32 or "
            "fp16. Choose precision fp16."
        )
    if precision == "fp16" and device.type == "mps":
        raise ValueError(
            "precision is fp16, which needs gradient scaling, and Apple GPUs have none. "
            "Choose precision fp32 or bf16."
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    """Compute matrix products and convolutions in this format."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=DTYPES[precision])


def grad_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that fp16 gradients do not vanish; for other formats it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")
