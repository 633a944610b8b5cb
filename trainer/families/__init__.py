"""What is particular to one Stable Diffusion generation: look into a checkpoint, choose its family.
Never learns which method trains it."""

from __future__ import annotations

from pathlib import Path

import torch

from .base import ModelFamily
from .embedding import Embedding
from .files import CheckpointFile
from .kinds import describe
from .sd1 import SD1

FAMILIES: tuple[type[ModelFamily], ...] = (SD1,)


def load(path: Path, device: torch.device, embedding: Path | None = None) -> ModelFamily:
    """The model in fp32, frozen, on the device; `embedding` names the file of a textual inversion
    whose placeholder captions may use. FileNotFoundError or ValueError for files that cannot be
    used, before any weight is read."""
    source = CheckpointFile(path)
    learned = Embedding.read(embedding) if embedding else None
    model = family_of(source).load(source, device)
    if learned:
        model.add_embedding(learned)
    return model


def family_of(source: CheckpointFile) -> type[ModelFamily]:
    """Told from the file's names and shapes; ValueError says what another file seems to be."""
    for family in FAMILIES:
        if family.matches(source.shapes):
            return family
    known = " or ".join(family.name for family in FAMILIES)
    raise ValueError(
        f"'{source.path.name}' is {describe(source.shapes)}, not a {known} checkpoint. "
        f"Choose a {known} checkpoint that ComfyUI's Load Checkpoint reads."
    )
