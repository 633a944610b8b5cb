"""Compared with transformers' CLIP tokenizer on the same merges, and with published token ids."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch

from trainer.families.tokenizer import END, MERGES, START, ClipTokenizer

CAPTIONS = [
    "",
    " ",
    "a photo of sks dog",
    "A Photo, of SKS dog!!",
    "it's they've we'll I'm he'd can't o'clock",
    "2 dogs and 1024x768 pixels, 3.14",
    "tabs\tand\nnew lines   and   spaces ",
    "naïve café, Ångström, ça va, Übergröße, İstanbul",
    "cafe\u0301 with a combining accent",
    "犬の写真 собака 강아지 كلب",
    "🐶🐕‍🦺 a dog 👩🏽‍🚀",
    "<my-dog> (masterpiece:1.2), [best quality] {x}",
    "a|b||c --- ... ??? @user #tag http://example.com/?q=1&r=2",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "½ Ⅷ ² ٣",
    "a very long caption " * 40,
    "🐶" * 60,
]


@pytest.fixture(scope="session")
def transformers_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import CLIPTokenizerFast

    merges = MERGES.read_text("utf-8").splitlines()
    # OpenAI's order: bytes, bytes that end a word, merges, start, end.
    letters = published_byte_letters()
    entries = [*letters, *(f"{letter}</w>" for letter in letters)]
    entries += [line.replace(" ", "") for line in merges] + [START, END]
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
    return CLIPTokenizerFast.from_pretrained(str(folder), model_max_length=77)


@cache
def published_byte_letters() -> list[str]:
    """GPT-2's byte alphabet, in the order of its published code."""
    printable = [b for b in range(256) if chr(b).isprintable() and b not in (32, 0xA0, 0xAD)]
    others = [b for b in range(256) if b not in printable]
    letters = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    return [letters[b] for b in [*printable, *others]]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_the_ids_equal_those_of_transformers(transformers_tokenizer: Any, caption: str) -> None:
    expected = transformers_tokenizer(
        [caption], padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    assert torch.equal(ClipTokenizer().encode([caption]), expected)


def test_published_ids() -> None:
    ids = ClipTokenizer().encode(["a photo of a cat"])
    assert ids.dtype == torch.long
    assert ids[0].tolist() == [49406, 320, 1125, 539, 320, 2368, *[49407] * 71]


def test_the_vocabulary_is_whole() -> None:
    tokenizer = ClipTokenizer()
    assert tokenizer.token_id("!") == 0
    assert tokenizer.token_id(START) == 49406
    assert tokenizer.token_id(END) == 49407
    assert tokenizer.token_id("dog</w>") == 1929
    assert tokenizer.token_id("no such entry") is None


def test_captions_are_encoded_one_by_one() -> None:
    tokenizer = ClipTokenizer()
    together = tokenizer.encode(CAPTIONS)
    assert together.shape == (len(CAPTIONS), 77)
    for row, caption in zip(together, CAPTIONS, strict=True):
        assert torch.equal(row, tokenizer.encode([caption])[0])


def test_another_length_and_another_pad_token() -> None:
    ids = ClipTokenizer(max_length=6, pad_token="!").encode(["a cat", "a photo of a cat"])
    assert ids.tolist() == [[49406, 320, 2368, 49407, 0, 0], [49406, 320, 1125, 539, 320, 49407]]


@pytest.mark.parametrize("caption", CAPTIONS[:-2])
def test_captions_that_fit_are_not_cut(transformers_tokenizer: Any, caption: str) -> None:
    assert len(transformers_tokenizer(caption).input_ids) <= 77
    assert ClipTokenizer().cut_text(caption) == ""


@pytest.mark.parametrize(
    ("caption", "cut"),
    [
        ("dog " * 75, ""),
        ("dog " * 74 + "cats, birds", ", birds"),
        ("dog " * 75 + "Café au lait", "Café au lait"),
        ("dog " * 75 + "犬と猫", "犬と猫"),
        ("CAFÉ " * 75 + "and  Fish", "and  Fish"),
        ("cafe\u0301 " * 75 + "fish", "fish"),
    ],
)
def test_cut_text_is_the_part_that_does_not_fit(caption: str, cut: str) -> None:
    assert ClipTokenizer().cut_text(caption) == cut


@pytest.mark.parametrize("caption", ["a very long caption " * 40, "it's 1 café, o'clock! " * 30])
def test_the_rest_of_a_cut_caption_encodes_the_same(caption: str) -> None:
    tokenizer = ClipTokenizer()
    cut = tokenizer.cut_text(caption)
    assert cut
    assert caption.endswith(cut)
    kept = caption[: -len(cut)]
    assert tokenizer.cut_text(kept) == ""
    assert torch.equal(tokenizer.encode([kept]), tokenizer.encode([caption]))


def test_placeholders_match_only_whole_words() -> None:
    tokenizer = ClipTokenizer()
    tokenizer.add_placeholder("my-dog", [50000])
    tokenizer.add_placeholder("<dog>", [50001, 50002])
    tokenizer.add_placeholder("my-dog2", [50003])
    start, end = 49406, 49407

    def ids(caption: str) -> list[int]:
        found = tokenizer.encode([caption])[0].tolist()
        return found[1 : found.index(end)]

    plain = ClipTokenizer().encode(["tommy-dog my-doggy"])[0].tolist()
    assert ids("tommy-dog my-doggy") == plain[1 : plain.index(end)]
    assert ids("MY-DOG,my-dog2") == [50000, 267, 50003]
    assert ids("a<dog>!") == [320, 50001, 50002, 256]
    assert tokenizer.encode(["<dog>"])[0, 0] == start


def test_a_placeholder_does_not_change_the_ids_of_the_text_around_it() -> None:
    tokenizer = ClipTokenizer()
    tokenizer.add_placeholder("<x>", [50000])
    before, after = "a photo of a", "with it's  two dogs"
    together = tokenizer.encode([f"{before} <x> {after}"])[0].tolist()
    alone = [ClipTokenizer().encode([text])[0].tolist() for text in (before, after)]
    words = [row[1 : row.index(49407)] for row in alone]
    assert together[: len(words[0]) + 2 + len(words[1])] == [49406, *words[0], 50000, *words[1]]


def test_cut_text_counts_every_vector_of_a_placeholder() -> None:
    tokenizer = ClipTokenizer(max_length=7)
    tokenizer.add_placeholder("<x>", [50000, 50001, 50002])
    assert tokenizer.cut_text("a big <x>") == ""
    assert tokenizer.cut_text("a very big <x>") == "<x>"
    assert tokenizer.cut_text("<x> a big dog") == "dog"


def test_words_of_one_token_have_an_id() -> None:
    assert ClipTokenizer().word_ids("White dog") == [1579, 1929]


def test_the_cut_text_of_a_caption_is_new_only_once() -> None:
    tokenizer = ClipTokenizer(max_length=5)
    for caption in ("a very big dog", "a very big cat"):
        assert tokenizer.newly_cut_text(caption) == caption[-3:]
        assert tokenizer.newly_cut_text(caption) == ""
        assert tokenizer.cut_text(caption) == caption[-3:]
    assert tokenizer.newly_cut_text("a dog") == ""


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a \ud800", "The prompt 'a \\ud800' is not valid Unicode. Type it again."),
        (
            "a" * 100_001,
            "A prompt has 100001 characters, but at most 100000 are possible. Shorten it.",
        ),
    ],
)
def test_prompts_that_cannot_be_encoded_are_refused(caption, message):
    with pytest.raises(ValueError) as caught:
        ClipTokenizer().encode([caption])
    assert str(caught.value) == message


def test_only_the_beginning_of_a_long_end_is_reported():
    cut = ClipTokenizer().newly_cut_text("cat " * 10_000)
    assert (len(cut), cut[-1]) == (301, "…")
