"""The CLIP text encoders of Stable Diffusion: what a family says of each, and a loaded one with its
tokenizer.

Shapes: B batch, L tokens, D width, P width of the pooled output."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import hardware
from .embedding import TokenTable
from .files import CheckpointFile
from .key_maps import Places, clip_places, open_clip_places
from .layouts import TextLayout
from .tokenizer import END, ClipTokenizer

PADDING = "!"
"""What OpenCLIP fills up a text with. OpenAI's CLIP uses the token that ends it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TextEncoderSpec:
    """One text encoder of a family."""

    name: str
    """In embedding files, such as "clip_l"."""
    prefixes: tuple[str, ...]
    """What its weights' names in a checkpoint begin with: one of these. A longer one comes first.
    """
    is_open_clip: bool = False
    """Whether it is OpenCLIP's, which differs in layout, padding and activation."""
    is_pooled: bool = False
    """Whether the model also uses its pooled output."""

    @property
    def activation(self) -> str:
        """Its name in transformers."""
        return "gelu" if self.is_open_clip else "quick_gelu"

    def is_in(self, names: Collection[str]) -> bool:
        """Whether a file with tensors of these names has weights of the encoder."""
        return any(name.startswith(self.prefixes) for name in names)

    def read_layout(self, source: CheckpointFile) -> TextLayout:
        """Raises ValueError naming the weight if one that decides the layout is missing."""
        read = TextLayout.read_open_clip if self.is_open_clip else TextLayout.read
        return read(source, self._prefix(source))

    def places(self, names: Collection[str], source: CheckpointFile) -> Places:
        """Where the file has the encoder's weights of these names."""
        return self._places(names, self._prefix(source))

    def new_places(self, names: Collection[str]) -> Places:
        """Where a new file has them."""
        return self._places(names, self.prefixes[0])

    def _places(self, names: Collection[str], prefix: str) -> Places:
        return (open_clip_places if self.is_open_clip else clip_places)(names, prefix)

    def _prefix(self, source: CheckpointFile) -> str:
        names = source.shapes
        return next(
            (each for each in self.prefixes if any(name.startswith(each) for name in names)),
            self.prefixes[0],
        )


class TextEncoder:
    """A loaded text encoder, with its tokenizer and the learned vectors of placeholders."""

    def __init__(self, spec: TextEncoderSpec, module: Any, clip_skip: int, *, has_norm: bool):
        """`clip_skip` and `has_norm` choose the output of a pooled encoder. The module of another
        one ends with the layer to use."""
        self.name = spec.name
        self.module = module
        self.table = TokenTable(module.get_input_embeddings())
        module.set_input_embeddings(self.table)
        padding = PADDING if spec.is_open_clip else END
        self.tokenizer = ClipTokenizer(module.config.max_position_embeddings, padding)
        self._is_pooled = spec.is_pooled
        self._clip_skip, self._has_norm = clip_skip, has_norm

    def encode(self, captions: list[str], device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The output [B, L, D] of the chosen layer, and the pooled output [B, P] if the model uses
        it."""
        ids = hardware.move(self.tokenizer.encode(captions), device)
        if not self._is_pooled:
            return self.module(ids).last_hidden_state, None
        found = self.module(ids, output_hidden_states=True)
        hidden = found.hidden_states[-self._clip_skip]
        if self._has_norm:
            hidden = self.module.text_model.final_layer_norm(hidden)
        return hidden, found.text_embeds
