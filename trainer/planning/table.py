"""The table of what fits which card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from ..families.shapes import SD15, SDXL, ModelShape
from ..methods.base import Method
from ..methods.full import FullFineTune
from ..methods.lora import LoRA
from ..settings.config import TrainingConfig
from .cards import SIZES, usable
from .estimate import gigabytes
from .job import Job, setting
from .plan import Plan, Rules, fit

Case = tuple[str, Job]
"""A column of the table."""


def cases(config: TrainingConfig, base: ModelShape | None, rank: int = 16) -> list[Case]:
    """The columns for one model; None: those for the published models. `rank` is that of LoRAs."""
    with_class_images = config.replace(
        {"prior": {"weight": 1.0, "prompt": config.prior.prompt or "a photo of a dog"}}
    )
    both = FullFineTune(train_text_encoder=True)
    lora = LoRA(rank=rank)
    model = base or SD15
    found = [
        (model.name, Job(config, FullFineTune(), model)),
        ("+ text encoder", Job(config, both, model)),
        ("+ text encoder + class images", Job(with_class_images, both, model)),
        (f"{model.name}, LoRA", Job(config, lora, model)),
    ]
    if not base:
        found.append((SDXL.name, Job(config, FullFineTune(), SDXL)))
        found.append((f"{SDXL.name}, LoRA", Job(config, lora, SDXL)))
    return found


def rows(columns: list[Case], given: frozenset[str]) -> Iterator[str]:
    """The lines of a Markdown table. The passes are counted between the first ones."""
    yield f"| card (usable) | {' | '.join(name for name, _ in columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for card in SIZES:
        found = " | ".join(_cell(job, card, given) for _, job in columns)
        yield f"| {card} GB ({gigabytes(usable(card))}) | {found} |"


def _cell(job: Job, card: int, given: frozenset[str]) -> str:
    """For as many photos per step as fit, the given number first."""
    rules = Rules(device=torch.device("cpu"), given=given, check=job.method.check)
    while True:
        try:
            return described(fit(job, usable(card), rules), job.method)
        except ValueError:
            fewer = job.config.batch_size // 2
            if not fewer or "batch_size" in given:
                return "–"
            job = replace(job, config=job.config.replace({"batch_size": fewer}))


def described(plan: Plan, method: Method) -> str:
    """A plan in a few words, such as "4.8 GB: 24 bit, AdamW8bit, released, b1 recomputed"."""
    config = plan.config
    is_frozen = not method.trained_parts
    frozen = config.precision if config.frozen_weights == "precision" else config.frozen_weights
    words = [f"{frozen} base" if is_frozen else config.weights, config.optimizer.name]
    names = {"gradient_release": "released", "offload": "offloaded"}
    words += [word for name, word in names.items() if setting(config, name)]
    passes = config.gradient_accumulation
    batch = f"b{config.batch_size}" + (f"x{passes}" if passes > 1 else "")
    words.append(batch + (" recomputed" if config.gradient_checkpointing else ""))
    return f"{gigabytes(plan.estimate.total)}: {', '.join(words)}"
