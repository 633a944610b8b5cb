"""Captions to CLIP's token ids, from the vocabulary that ships in `assets/`; no network, no files
of the user's. Built on the `tokenizers` library itself, whose interface stays while transformers'
tokenizer classes change between releases."""

from __future__ import annotations

import re
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
        self._placeholders: dict[str, list[int]] = {}

    def token_id(self, token: str) -> int | None:
        """The id of one vocabulary entry, such as `cup</w>`; None if there is no such entry."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def word_ids(self, words: str) -> list[int]:
        """The id of each word, separated by spaces. ValueError for a word that is not one token by
        itself."""
        ids = []
        for word in words.split():
            found = self._tokenizer.encode(word, add_special_tokens=False)
            if len(found.ids) != 1:
                parts = ", ".join(token.removesuffix("</w>") for token in found.tokens)
                raise ValueError(
                    f"{word!r} is not one token of CLIP's vocabulary but {len(found.ids)} "
                    f"({parts}). Use a more common word."
                )
            ids += found.ids
        return ids

    def add_placeholder(self, word: str, ids: list[int]) -> None:
        """Let a word stand for these ids wherever a caption has it as a word of its own, in
        capitals or not. ValueError for a word that has a meaning already."""
        self._placeholders[check_placeholder(word).lower()] = ids

    def encode(self, captions: list[str]) -> Tensor:
        """Ids [B, L] with start and end token, cut and padded to `max_length`."""
        start, end = self.token_id(START), self.token_id(END)
        rows = []
        for caption in captions:
            ids = [start, *(token for token, _ in self._tokens(caption)[: self.num_words]), end]
            rows.append(ids + [self.pad_id] * (self.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long)

    def cut_text(self, caption: str) -> str:
        """The end of the caption that does not fit and is never read; "" if all of it fits."""
        tokens = self._tokens(caption)
        return caption[tokens[self.num_words][1] :] if len(tokens) > self.num_words else ""

    @property
    def num_words(self) -> int:
        """Tokens that a caption has room for."""
        return self.max_length - 2

    def _tokens(self, caption: str) -> list[tuple[int, int]]:
        """Each token's id, and where in the caption it begins. What stands between placeholders is
        encoded by itself, as ComfyUI's `SDTokenizer` does around `embedding:name`."""
        tokens, start = [], 0
        for found in self._find_placeholders(caption):
            tokens += self._text_tokens(caption, start, found.start())
            tokens += [(i, found.start()) for i in self._placeholders[found[0].lower()]]
            start = found.end()
        return tokens + self._text_tokens(caption, start, len(caption))

    def _find_placeholders(self, caption: str) -> list[re.Match[str]]:
        if not self._placeholders:
            return []
        return list(_pattern(list(self._placeholders)).finditer(caption))

    def _text_tokens(self, caption: str, start: int, end: int) -> list[tuple[int, int]]:
        encoded = self._tokenizer.encode(caption[start:end], add_special_tokens=False)
        starts = [start + offset for offset, _ in encoded.offsets]
        return list(zip(encoded.ids, starts, strict=True))


def check_placeholder(word: str) -> str:
    """The word, if it can stand for something new: ValueError if it has spaces in it or is one
    token of CLIP's vocabulary."""
    if not word or word.split() != [word]:
        raise ValueError(
            f"The placeholder must be one word without spaces, got {word!r}. Use one such as "
            "'<my-dog>'."
        )
    if len(_byte_pair_encoding().encode(word, add_special_tokens=False).ids) < 2:
        other = word.strip("<>")
        raise ValueError(
            f"The placeholder {word!r} is a word of CLIP's vocabulary already, and would change "
            f"what that word means in every prompt. Use one that is not, such as '<{other}>'."
        )
    return word


def has_placeholder(caption: str, word: str) -> bool:
    """Whether the caption has the placeholder as a word of its own."""
    return _pattern([word]).search(caption) is not None


def _pattern(words: list[str]) -> re.Pattern[str]:
    """Finds these words, but not inside of longer ones; the longest where several fit."""
    longest_first = sorted(words, key=len, reverse=True)
    # A bracket ends a word by itself; a letter does only where no other follows.
    bounded = [
        (r"(?<!\w)" if word[0].isalnum() else "")
        + re.escape(word)
        + (r"(?!\w)" if word[-1].isalnum() else "")
        for word in longest_first
    ]
    return re.compile("|".join(bounded), re.IGNORECASE)


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
