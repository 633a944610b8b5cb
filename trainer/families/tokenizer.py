"""Captions to CLIP's token ids, from the vocabulary that ships in `assets/`; no network, no files
of the user's. Built on the `tokenizers` library itself, whose interface stays while transformers'
tokenizer classes change between releases."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = Path(__file__).parent / "assets" / "clip_merges.txt"
START, END = "<|startoftext|>", "<|endoftext|>"


class ClipTokenizer:
    """CLIP's byte-pair encoding, as in OpenAI's `clip/simple_tokenizer.py`: lower case, words ended
    by `</w>`, 49408 entries."""

    def __init__(self, max_length: int = 77, pad_token: str = END) -> None:
        """`max_length` counts the start and end tokens. Stable Diffusion 1 pads with the end token,
        2 and the second encoder of XL with `!`."""
        self.max_length = max_length
        self._tokenizer = _byte_pair_encoding()
        self.pad_id = self.token_id(pad_token)

    def token_id(self, token: str) -> int | None:
        """The id of one vocabulary entry, such as `cup</w>`; None if there is no such entry."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def encode(self, captions: list[str]) -> Tensor:
        """Ids [B, L] with start and end token, cut and padded to `max_length`."""
        start, end = self.token_id(START), self.token_id(END)
        rows = []
        for caption in captions:
            ids = [start, *self._ids(caption)[: self.max_length - 2], end]
            rows.append(ids + [self.pad_id] * (self.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long)

    def cut_text(self, caption: str) -> str:
        """The end of the caption that does not fit and is never read; "" if all of it fits."""
        offsets = self._tokenizer.encode(caption, add_special_tokens=False).offsets
        room = self.max_length - 2
        return caption[offsets[room][0] :] if len(offsets) > room else ""

    def _ids(self, caption: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(caption, add_special_tokens=False).ids
        return ids


@cache
def _byte_pair_encoding() -> Tokenizer:
    # Imported here: ComfyUI's start-up should not pay for it.
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

    merges = [
        (line.split(" ")[0], line.split(" ")[1]) for line in MERGES.read_text("utf-8").splitlines()
    ]
    letters = list(_byte_letters())
    entries = letters + [letter + "</w>" for letter in letters]
    entries += ["".join(pair) for pair in merges] + [START, END]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={entry: index for index, entry in enumerate(entries)},
            merges=merges,
            end_of_word_suffix="</w>",
            unk_token=END,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = (
        r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|"
        r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def _byte_letters() -> list[str]:
    """The 256 bytes as printable letters, in the vocabulary's order: the printable ones of Latin-1
    stand for themselves, the others move beyond U+0100."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), 256),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
