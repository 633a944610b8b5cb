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
        self._cache: dict[tuple[str, Framing | None], Conditioning] = {}

    def encode(self, captions: list[str], framings: list[Framing]) -> Conditioning:
        """The conditioning of a batch."""
        if not self._frozen:
            return self._model.encode_captions(captions, framings)
        pairs = list(zip(captions, framings, strict=True))
        self.fill_cache(pairs)
        return Conditioning.stack([self._cache[self._key(*pair)] for pair in pairs])

    @torch.no_grad()
    def fill_cache(self, pairs: Iterable[tuple[str, Framing]]) -> None:
        """Encode the captions that are not cached yet. One by one, so that no encoding depends on
        the others in its batch."""
        for caption, framing in pairs:
            key = self._key(caption, framing)
            if key not in self._cache:
                self._cache[key] = self._model.encode_captions([caption], [framing])

    def _key(self, caption: str, framing: Framing) -> tuple[str, Framing | None]:
        return caption, framing if self._model.uses_framing else None
