"""Learned words: the file of a textual inversion, and the text encoder's table with rows added.

Shapes: N vectors, B batch, L tokens, D width."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from .files import CheckpointFile
from .tokenizer import check_placeholder

PLACEHOLDER_KEY = "dreambooth.placeholder"
"""Where the file's metadata says which word its vectors were learned for."""
NAMES = ("clip_l", "clip_g", "clip_h")
"""What ComfyUI's text encoders call their vectors in a file (`SDTokenizer.embedding_key`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A placeholder, and the vectors it stands for."""

    placeholder: str
    vectors: dict[str, Tensor]
    """[N, D] fp32, by the text encoder's name in `NAMES`: Stable Diffusion 1 has "clip_l", XL
    "clip_l" and "clip_g"."""

    @classmethod
    def read(cls, path: Path) -> Embedding:
        """From a file of ours, or one of other trainers for a single text encoder, which then gets
        the name "clip_l" and the file's own name for a placeholder. FileNotFoundError if there is
        no such file, ValueError if it holds no vectors or its placeholder cannot be one."""
        file = CheckpointFile(path)
        keys = [key for key in NAMES if key in file.shapes]
        if not keys and len(file.shapes) == 1:
            keys = list(file.shapes)
        if not keys:
            raise ValueError(
                f"'{path.name}' holds {len(file.shapes)} tensors, none of them named "
                f"{', '.join(NAMES)}, so it is no textual inversion. Choose a file that Textual "
                "Inversion Train wrote, or another embedding."
            )
        placeholder = file.metadata.get(PLACEHOLDER_KEY, path.stem)
        vectors = {key if key in NAMES else NAMES[0]: _vectors(file, key) for key in keys}
        return cls(check_placeholder(placeholder), vectors)


def _vectors(file: CheckpointFile, key: str) -> Tensor:
    file.require(key)
    vectors = file.tensor(key).float()
    if vectors.ndim == 1:
        vectors = vectors.unsqueeze(0)
    if vectors.ndim != 2 or len(vectors) == 0 or not vectors.isfinite().all():
        raise ValueError(
            f"'{key}' of '{file.path.name}' has the shape {list(vectors.shape)} or holds NaN, and "
            "a textual inversion is one finite vector per token. Choose another file."
        )
    return vectors.clone()


class WordTable(nn.Module):
    """The text encoder's token table, and behind its last id the vectors of learned words. Those
    are not among its parameters and not in its state dict: a checkpoint's table keeps its length,
    which ComfyUI insists on."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self._learned: list[nn.Parameter] = []  # a list, which nn.Module does not look into

    def add(self, vectors: Tensor) -> tuple[list[int], nn.Parameter]:
        """The ids of new vectors [N, D], and the parameter, frozen, that holds them from now on."""
        parameter = nn.Parameter(vectors.to(self.weight.device, torch.float32, copy=True), False)
        first = len(self.weight) + sum(map(len, self._learned))
        self._learned.append(parameter)
        return list(range(first, first + len(vectors))), parameter

    def forward(self, ids: Tensor) -> Tensor:
        """[B, L] ids to vectors [B, L, D]."""
        last = len(self.weight) - 1
        hidden = nn.functional.embedding(ids.clamp(max=last), self.weight)
        if not self._learned:
            return hidden
        learned = torch.cat(cast("list[Tensor]", self._learned))
        new = nn.functional.embedding((ids - last - 1).clamp(min=0), learned)
        return torch.where((ids > last).unsqueeze(-1), new.to(hidden.dtype), hidden)
