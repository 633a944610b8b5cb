"""Text encodings of captions during training."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from ..families.base import Conditioning, Framing, ModelFamily


class CaptionEncoder:
    """Encodes captions: at each step if the text encoder is trained, otherwise once each."""

    def __init__(self, model: ModelFamily, *, frozen: bool) -> None:
        self._model = model
        self._frozen = frozen
        self._cache: dict[str, Conditioning] = {}

    def encode(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        """The conditioning of a batch."""
        return self._model.with_framings(self._encode(captions), framings)

    def _encode(self, captions: list[str]) -> Conditioning:
        if not self._frozen:
            return self._model.encode_captions(captions)
        self.fill_cache(captions)
        return Conditioning.stack([self._cache[caption] for caption in captions])

    @torch.no_grad()
    def fill_cache(self, captions: Iterable[str]) -> None:
        """Encode the captions that are not cached yet. One by one, so that no encoding depends on
        the others in its batch."""
        for caption in captions:
            if caption not in self._cache:
                self._cache[caption] = self._model.encode_captions([caption])
