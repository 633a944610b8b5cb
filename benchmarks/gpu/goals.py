"""Measures whether a step fits the memory of the cards that it is meant for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.random_networks import TINY_XL_UNET, XL_UNET, Options, construct_unet
from trainer import eight_bit, precision, weights
from trainer.families.shapes import ModelShape, NetworkShape
from trainer.methods.base import Part, thaw
from trainer.methods.lora import LoRA
from trainer.planning.adapters import adapters_of, attach_all
from trainer.settings.config import FrozenWeights, OptimizerConfig
from trainer.training.per_weight_step import PerWeightStep
from trainer.training.speed import peak_tflops, step_flops

from . import training
from .bench import Bench, Memory, require_time, within
from .random_model import TINY, fill
from .training import LORA, TEXT_AND_CLASS, UNET, Setting

LEAN = Setting(
    trains=UNET, batch_size=1, precision="bf16", optimizer="AdamW8bit",
    gradient_checkpointing=True, weights="24 bit", gradient_release=True,
)  # fmt: skip
LEAN_LORA = replace(LEAN, trains=LORA, optimizer="AdamW", weights="fp32", gradient_release=False)
GOALS = {LEAN: 5.0, replace(LEAN, trains=TEXT_AND_CLASS): 7.0, LEAN_LORA: 3.0}
"""The most GB that a step of Stable Diffusion 1.5 may allocate."""
XL = "the U-Net of Stable Diffusion XL"
XL_GOALS = {("Adafactor without momentum", False): 9.0, ("AdamW8bit", True): 7.3}
"""The same for XL, by optimizer and whether its state is in main memory."""
XL_LORA = "LoRA of rank 16 for the U-Net of Stable Diffusion XL"
XL_LORA_GOALS: Mapping[FrozenWeights, float] = {"precision": 7.2, "8 bit": 5.1}
"""The same for a LoRA of XL, by the format of the frozen weights: cards of 8 and 6 GB."""
XL_STEPS = 3


def measure_goals(bench: Bench, deadline: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each goal, even if its measurement fails."""
    for setting, goal in within(deadline, GOALS.items()):
        row = training.attempt(partial(_measure, setting, bench, deadline))
        yield {**asdict(setting), "goal": goal, **row}
    for (optimizer, offload), goal in within(deadline, XL_GOALS.items()):
        row = training.attempt(partial(_measure_xl, optimizer, offload, bench, deadline))
        setting = replace(LEAN, trains=XL, optimizer=optimizer + ", offloaded" * offload)
        yield {**asdict(setting), "goal": goal, **row}
    for frozen, goal in within(deadline, XL_LORA_GOALS.items()):
        row = training.attempt(partial(_measure_xl_lora, frozen, bench, deadline))
        setting = replace(LEAN_LORA, trains=XL_LORA, frozen_weights=frozen)
        yield {**asdict(setting), "goal": goal, **row}


def _measure(setting: Setting, bench: Bench, deadline: float) -> dict[str, Any]:
    checkpoint = bench.checkpoint  # writing it needs memory that does not count
    taken = Memory(bench.device)
    session = training.open_session(setting, checkpoint, bench)
    rates = training.steps_per_second(session, deadline)
    peaks, peak = taken.peaks(), peak_tflops(bench.device)
    share = max(rates) * step_flops(session) / (1e12 * peak) if peak else None
    return {**peaks, "steps_per_second": rates, "share": share}


def _measure_xl(optimizer: str, offload: bool, bench: Bench, deadline: float) -> dict[str, Any]:
    """The trainer has no family for these models yet, so its step runs on the network alone."""
    taken = Memory(bench.device)
    unet, side = _xl(bench)
    config = replace(
        LEAN.config(bench.folder, bench.shape.resolution),
        optimizer=OptimizerConfig(name=optimizer), offload=offload,
    )  # fmt: skip
    model: Any = SimpleNamespace(device=bench.device, embeddings=list)
    for parameter in unet.parameters():
        weights.store(parameter, config.weights)
    part = Part("unet", thaw(unet), config.optimizer.learning_rate)
    step = PerWeightStep(config, model, [part])
    inputs = _inputs(unet, side, bench.device)
    for number in range(1, XL_STEPS + 1):
        require_time(deadline)
        step.set_learning_rates(number)
        with precision.autocast(config.precision, bench.device, keeps_casts=False):
            prediction: Tensor = unet(**inputs).sample
        step.backward(prediction.float().square().mean(), is_last=True)
        step.clip_gradients()
        step.update_weights(number)
    return {**taken.peaks(), "steps_per_second": []}


def _measure_xl_lora(frozen: FrozenWeights, bench: Bench, deadline: float) -> dict[str, Any]:
    """The adapters of a LoRA on the network alone."""
    taken = Memory(bench.device)
    unet, side = _xl(bench)
    unet.requires_grad_(False)
    shape = NetworkShape.of_module("unet", unet)
    if frozen == "8 bit":
        for layer in eight_bit.layers(unet).values():
            eight_bit.hold(layer, eight_bit.values(layer), torch.bfloat16)
    adapters = adapters_of(LoRA(), ModelShape(XL, shape, shape, ()))["unet"]
    with bench.device:
        attached = attach_all(unet, adapters)
    optimizer = torch.optim.AdamW([p for each in attached for p in each.parameters()], fused=True)
    inputs = _inputs(unet, side, bench.device)
    for _ in range(XL_STEPS):
        require_time(deadline)
        with precision.autocast(LEAN_LORA.precision, bench.device, keeps_casts=False):
            prediction: Tensor = unet(**inputs).sample
        prediction.float().square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return {**taken.peaks(), "steps_per_second": []}


def _xl(bench: Bench) -> tuple[Any, int]:
    """The U-Net of XL, and the width and height of its latents."""
    shape, side = (TINY_XL_UNET, 16) if bench.shape is TINY else (XL_UNET, 128)
    return _lean_unet(shape, bench.device), side


def _lean_unet(shape: Options, device: torch.device) -> Any:
    """A U-Net with random weights, created in bf16, so that there is no fp32 copy of it."""
    with torch.device("meta"):
        unet: nn.Module = construct_unet(shape)
    fill(unet.bfloat16().to_empty(device=device), torch.Generator(device).manual_seed(0))
    checkpointed: Any = unet.train()
    checkpointed.enable_gradient_checkpointing()
    return checkpointed


def _inputs(unet: Any, side: int, device: torch.device) -> dict[str, Any]:
    """A step's inputs for one image, with `side` latents along each side."""
    pooled = unet.config.projection_class_embeddings_input_dim
    pooled -= 6 * unet.config.addition_time_embed_dim
    return {
        "sample": torch.randn(1, unet.config.in_channels, side, side, device=device),
        "timestep": torch.tensor([500], device=device),
        "encoder_hidden_states": torch.randn(1, 77, unet.config.cross_attention_dim, device=device),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, pooled, device=device),
            "time_ids": torch.zeros(1, 6, device=device),
        },
    }


def describe(row: dict[str, Any]) -> str:
    """The row as one line."""
    return f"{training.describe(row)}; the goal is {row['goal']:.1f} GB"
