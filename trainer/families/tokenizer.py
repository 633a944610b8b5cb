"""Turns captions into CLIP's token ids. The vocabulary is in `assets/`, so nothing is downloaded.
Uses the `tokenizers` library directly: its interface is stable, while transformers' tokenizer
classes change between releases."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..console import beginning
from ..storage.names import is_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MERGES = Path(__file__).parent / "assets" / "clip_merges.txt"
MAX_CHARACTERS = 100_000
"""Of a prompt. A text encoder reads a few hundred."""
START, END = "<|startoftext|>", "<|endoftext|>"


class ClipTokenizer:
    """CLIP's byte-pair encoding, as in OpenAI's `clip/simple_tokenizer.py`: lower case, words that
    end with `</w>`, 49408 entries."""

    def __init__(self, max_length: int = 77, pad_token: str = END) -> None:
        """`max_length` includes the start and end tokens. Stable Diffusion 1 pads with the end
        token, Stable Diffusion 2 and the second text encoder of XL with `!`."""
        self.max_length = max_length
        self._tokenizer = _byte_pair_encoding()
        self.pad_id = self.token_id(pad_token)
        self._placeholders: dict[str, list[int]] = {}
        self.reported: set[str] = set()
        """Captions whose end is cut off and for which `newly_cut_text` returned it already."""

    def token_id(self, token: str) -> int | None:
        """The id of a vocabulary entry such as `cup</w>`. None: not in the vocabulary."""
        token_id: int | None = self._tokenizer.token_to_id(token)
        return token_id

    def word_ids(self, words: str) -> list[int]:
        """The ids of words separated by spaces. Raises ValueError if one is not a single token."""
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
        """Encode `word` as these ids wherever it is a separate word in a caption, ignoring case.
        Raises ValueError if it cannot be a placeholder."""
        self._placeholders[check_placeholder(word).lower()] = ids

    def encode(self, captions: list[str]) -> Tensor:
        """Ids [B, L] with start and end tokens, truncated and padded to `max_length`."""
        start, end = self.token_id(START), self.token_id(END)
        rows = []
        for caption in captions:
            tokens = self._tokens(caption)[: self.max_caption_tokens]
            ids = [start, *(token_id for token_id, _ in tokens), end]
            rows.append(ids + [self.pad_id] * (self.max_length - len(ids)))
        return torch.tensor(rows, dtype=torch.long)

    def cut_text(self, caption: str) -> str:
        """The end of the caption that does not fit and is cut off, or "" if all of it fits."""
        tokens = self._tokens(caption)
        if len(tokens) <= self.max_caption_tokens:
            return ""
        _, first_cut = tokens[self.max_caption_tokens]
        return caption[first_cut:]

    def newly_cut_text(self, caption: str) -> str:
        """The beginning of `cut_text` at the first call for a caption; "" later, so that each is
        reported once."""
        if caption in self.reported or not (cut := self.cut_text(caption)):
            return ""
        self.reported.add(caption)
        return beginning(cut)

    @property
    def max_caption_tokens(self) -> int:
        """`max_length` without the start and end tokens."""
        return self.max_length - 2

    def _tokens(self, caption: str) -> list[tuple[int, int]]:
        """Each token's id and its start in the caption. Text between placeholders is encoded
        separately, as ComfyUI's `SDTokenizer` does around `embedding:name`. Raises ValueError if
        the caption is too long or not valid Unicode."""
        if len(caption) > MAX_CHARACTERS:
            raise ValueError(
                f"A prompt has {len(caption)} characters, but at most {MAX_CHARACTERS} are "
                "possible. Shorten it."
            )
        if not is_text(caption):
            raise ValueError(f"The prompt {caption!r} is not valid Unicode. Type it again.")
        tokens, start = [], 0
        for found in self._find_placeholders(caption):
            tokens += self._text_tokens(caption, start, found.start())
            ids = self._placeholders[found[0].lower()]
            tokens += [(token_id, found.start()) for token_id in ids]
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
    """The word itself, if it can be a placeholder. Raises ValueError if it contains spaces or is a
    token of CLIP's vocabulary."""
    if not word or word.split() != [word]:
        raise ValueError(
            f"The placeholder must be one word without spaces, got {word!r}. Use one such as "
            "'<my-dog>'."
        )
    if not can_be_placeholder(word):
        other = word.strip("<>")
        raise ValueError(
            f"The placeholder {word!r} is already a word of CLIP's vocabulary, and would change "
            f"that word's meaning in every prompt. Use a new word, such as '<{other}>'."
        )
    return word


def can_be_placeholder(word: str) -> bool:
    """Whether it is one word without spaces, and CLIP's vocabulary has no token for it."""
    ids = _byte_pair_encoding().encode(word, add_special_tokens=False).ids
    return word.split() == [word] and len(ids) >= 2


def has_placeholder(caption: str, word: str) -> bool:
    """Whether the placeholder is a separate word in the caption."""
    return _pattern([word]).search(caption) is not None


def _pattern(words: list[str]) -> re.Pattern[str]:
    """Matches these words, but not inside longer ones. Prefers the longest match."""
    longest_first = sorted(words, key=len, reverse=True)
    # A word that begins or ends with a letter or digit must not touch another one there.
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
    """A printable character for each of the 256 bytes, in the vocabulary's order: first the
    printable characters of Latin-1, then characters from U+0100 on for the other bytes."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), 256),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
