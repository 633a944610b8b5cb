"""Textual inversion embeddings: their files, and a token table that has room for their vectors.

Shapes: N vectors, B batch, L tokens, D width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .files import EMBEDDING, CheckpointFile
from .kinds import AN_EMBEDDING, UNKNOWN, describe
from .tokenizer import can_be_placeholder, check_placeholder, has_placeholder

if TYPE_CHECKING:
    from typing import Self  # Python 3.11's, and only type checkers read it

PLACEHOLDER_KEY = "dreambooth.placeholder"
"""The metadata key of the placeholder that the vectors were trained for."""
ENCODER_NAMES = ("clip_l", "clip_g", "clip_h")
"""The names of text encoders in an embedding file, as ComfyUI reads them
(`SDTokenizer.embedding_key`)."""
MODEL_OF = {
    "clip_g": "Stable Diffusion XL",
    "clip_h": "Stable Diffusion 2",
    "clip_l": "Stable Diffusion 1",
}
"""By text encoder. XL's models also have clip_l."""

MAX_SHOWN = 4
"""Tensors that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """A placeholder and the vectors that replace it."""

    placeholder: str
    vectors: dict[str, Tensor]
    """[N, D] fp32, by text encoder: "clip_l" for Stable Diffusion 1, "clip_l" and "clip_g" for XL.
    """

    @classmethod
    def read(cls, path: Path) -> Embedding:
        """Read a file of this trainer, or another trainer's file for a single text encoder, which
        is assumed to be "clip_l". Without a placeholder in the metadata, the file's name without
        its extension is the placeholder. Raises FileNotFoundError if the file does not exist, and
        ValueError if it holds no vectors or its placeholder is not allowed."""
        file = CheckpointFile(path, EMBEDDING)
        keys = [key for key in ENCODER_NAMES if key in file.shapes]
        if not keys and len(file.shapes) == 1:
            keys = list(file.shapes)
        if not keys:
            raise ValueError(
                f"'{file.name}' {_contents(file)}. Choose a file that holds one embedding, such as "
                "one that Textual Inversion Train wrote."
            )
        names = [key if key in ENCODER_NAMES else ENCODER_NAMES[0] for key in keys]
        vectors = {name: _vectors(file, key) for name, key in zip(names, keys, strict=True)}
        return cls(_placeholder(file), vectors)

    def require_fit(self, widths: Mapping[str, int], model: str, file: str) -> None:
        """Raises ValueError if the vectors do not fit text encoders of these names and widths.
        `model` is the kind of model and `file` its file, for messages."""
        # Vectors of another encoder mean that those for a shared one are of little use alone.
        if self.vectors.keys() != widths.keys():
            found = next(of for name, of in MODEL_OF.items() if name in self.vectors)
            raise ValueError(
                f"The embedding of {self.placeholder!r} is for {found}: it has vectors for "
                f"{' and '.join(self.vectors)}, but {model} needs vectors for "
                f"{' and '.join(sorted(widths))} alone. Choose an embedding for {model}."
            )
        for name, width in widths.items():
            found_width = self.vectors[name].shape[1]
            if found_width != width:
                raise ValueError(
                    f"The vectors of {self.placeholder!r} have {found_width} dimensions, but the "
                    f"text encoder of '{file}' needs {width}. Choose an embedding that was trained "
                    "for this kind of model."
                )


def _placeholder(file: CheckpointFile) -> str:
    """The word that stands for the vectors in prompts. Raises ValueError if it cannot be one."""
    if PLACEHOLDER_KEY in file.metadata:
        return check_placeholder(file.metadata[PLACEHOLDER_KEY])
    path, name = file.path, file.path.stem
    if can_be_placeholder(name):
        return name
    fault = "is a word of CLIP's vocabulary" if name.split() == [name] else "contains spaces"
    better = "-".join(name.split())
    if not can_be_placeholder(better):
        better = f"my-{better or 'embedding'}"
    raise ValueError(
        f"The placeholder of '{file.name}' in prompts is its file name, but '{name}' {fault}. "
        f"Rename the file to '{better}{path.suffix}', and write '{better}' in prompts."
    )


def _contents(file: CheckpointFile) -> str:
    """What a file holds that is not one embedding."""
    kind = describe(file.shapes)
    if kind not in (AN_EMBEDDING, UNKNOWN):
        return f"is {kind}, not an embedding of textual inversion"
    found = [f"'{key}' with the shape {list(shape)}" for key, shape in file.shapes.items()]
    more = [f"and {len(found) - MAX_SHOWN} more"] if len(found) > MAX_SHOWN else []
    return (
        f"holds {len(found)} tensors, not one embedding: {', '.join([*found[:MAX_SHOWN], *more])}"
    )


def _vectors(file: CheckpointFile, key: str) -> Tensor:
    file.require(key)
    vectors = file.tensor(key).float()
    if vectors.ndim == 1:
        vectors = vectors.unsqueeze(0)
    if vectors.ndim != 2 or len(vectors) == 0 or not vectors.isfinite().all():
        raise ValueError(
            f"'{key}' of '{file.name}' has the shape {list(vectors.shape)}, or holds NaN or "
            "infinite numbers. An embedding must be one finite vector per token. Choose another "
            "file."
        )
    return vectors.clone()


def require_in_use(path: Path, prompts: Iterable[str]) -> None:
    """Raises ValueError if no prompt contains the placeholder of an embedding's file."""
    placeholder = Embedding.read(path).placeholder
    if not any(has_placeholder(prompt, placeholder) for prompt in prompts):
        raise ValueError(
            f"The embedding's placeholder {placeholder!r} appears in no prompt, so the embedding "
            f"would have no effect. Add it to a prompt, for example 'a photo of {placeholder}', or "
            "use the model without the embedding."
        )


class TokenTable(nn.Module):
    """A text encoder's token embeddings, followed by the vectors of placeholders. These vectors are
    neither parameters of this module nor in its state dict, so the table in a checkpoint keeps the
    length that ComfyUI requires."""

    def __init__(self, table: nn.Embedding) -> None:
        super().__init__()
        self.weight = table.weight
        self._learned = (nn.ParameterList(),)  # in a tuple, so that nn.Module does not register it

    def add(self, vectors: Tensor) -> tuple[list[int], nn.Parameter]:
        """Add vectors [N, D]. Returns their ids, and the frozen parameter that holds them."""
        parameter = nn.Parameter(vectors.to(self.weight.device, torch.float32, copy=True), False)
        (learned,) = self._learned
        first = len(self.weight) + sum(map(len, learned))
        learned.append(parameter)
        return list(range(first, first + len(vectors))), parameter

    def forward(self, ids: Tensor) -> Tensor:
        """The vectors [B, L, D] of ids [B, L]."""
        last = len(self.weight) - 1
        # The weight may be in bf16; what is added to the vectors needs the accuracy of fp32.
        hidden = nn.functional.embedding(ids.clamp(max=last), self.weight).float()
        (learned,) = self._learned
        if not len(learned):
            return hidden
        new = nn.functional.embedding((ids - last - 1).clamp(min=0), torch.cat(list(learned)))
        return torch.where((ids > last).unsqueeze(-1), new, hidden)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """How nn.Module moves its parameters. Those of the placeholders move with them."""
        for learned in self._learned:
            learned._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
