"""How much of a card's peak performance a run uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from .. import precision
from ..families.base import Conditioning, ModelFamily

if TYPE_CHECKING:
    from .session import Session

META = torch.device("meta")
PEAKS = {
    "RTX 3060": 25.5, "RTX 3060 Ti": 32.4, "RTX 3070": 40.6, "RTX 3070 Ti": 43.5, "RTX 3080": 59.5,
    "RTX 3080 Ti": 68.2, "RTX 3090": 71.0, "RTX 3090 Ti": 80.0,
    "RTX 4060": 30.2, "RTX 4060 Ti": 44.1, "RTX 4070": 58.3, "RTX 4070 SUPER": 71.0,
    "RTX 4070 Ti": 80.2, "RTX 4070 Ti SUPER": 88.2, "RTX 4080": 97.5, "RTX 4080 SUPER": 104.4,
    "RTX 4090": 165.2, "RTX 5060": 38.4, "RTX 5060 Ti": 47.4, "RTX 5070": 61.7,
    "RTX 5070 Ti": 87.9, "RTX 5080": 112.6, "RTX 5090": 209.5,
    "RTX A6000": 154.8, "T4": 65.0, "A10": 125.0, "L4": 121.0, "L40S": 362.0,
    "A100-SXM4-40GB": 312.0, "A100-SXM4-80GB": 312.0, "A100-PCIE-40GB": 312.0,
    "A100 80GB PCIe": 312.0, "H100 PCIe": 756.0, "H100 80GB HBM3": 989.0, "H200": 989.0,
}  # fmt: skip
"""TFLOPS of matrix products in fp16 and bf16 that are summed up in fp32, as PyTorch does, without
sparsity: NVIDIA's figures by the names that drivers report. Laptop cards, whose clock rates differ
between models, are left out."""


def peak_tflops(device: torch.device) -> float | None:
    """None for cards that PEAKS does not have, and devices that are no NVIDIA cards."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for maker in ("NVIDIA ", "GeForce ", "Tesla "):
        name = name.removeprefix(maker)
    return PEAKS.get(name)


def describe(session: Session) -> str:
    """One sentence on a run's speed. "" if the card's peak is unknown, and in fp32."""
    peak = peak_tflops(session.model.device)
    if peak is None or session.config.precision == "fp32" or not session.reports:
        return ""
    per_step = step_flops(session) / 1e12
    reached = per_step * session.reports[-1].steps_per_second
    return (
        f"The U-Net computed {per_step:.1f} TFLOP per step and {reached:.1f} TFLOPS on average, "
        f"previews and saving included: {reached / peak:.0%} of the card's peak."
    )


def step_flops(session: Session) -> int:
    """The U-Net's floating point operations in a step, with what gradient checkpointing computes
    again. They are counted on tensors without memory, for images of the size of the first one."""
    model, (caption, framing) = session.model, session.batches.captions[0]
    with torch.no_grad(), precision.autocast(session.config.precision, model.device):
        conditioning = session.captions.encode([caption], [framing])
    width, height = (side // model.latent_factor for side in framing.size)
    inputs = (
        torch.empty(1, model.latent_channels, height, width, device=META),
        torch.empty(1, dtype=torch.int64, device=META),
        _on_meta(conditioning),
    )
    unet = _ForwardAndBackward(model)
    weights = {name: _like(weight) for name, weight in unet.named_parameters()}
    weights |= {name: buffer.to(META) for name, buffer in unet.named_buffers()}
    with torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        functional_call(unet, weights, inputs)
    return counter.get_total_flops() * session.batches.images_per_step


class _ForwardAndBackward(nn.Module):
    def __init__(self, model: ModelFamily) -> None:
        super().__init__()
        self._unet = model.unet
        self._predict = model.predict

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> None:
        self._predict(latents, timesteps, conditioning).sum().backward()  # type: ignore[no-untyped-call]


def _like(weight: Tensor) -> Tensor:
    return torch.empty(weight.shape, device=META, requires_grad=weight.requires_grad)


def _on_meta(conditioning: Conditioning) -> Conditioning:
    """Tensors of the same shapes. They need gradients, so that there is a backward pass even if the
    U-Net is frozen."""
    return conditioning.map(
        lambda tensor: torch.empty(tensor.shape, device=META, requires_grad=True)
    )
