from __future__ import annotations

import logging
import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from trainer.data.examples import (
    Example,
    find_examples,
    find_photos,
    warn_of_cut_captions,
    with_mirrors,
)
from trainer.families.tokenizer import ClipTokenizer
from trainer.settings.config import DatasetConfig

ENDINGS = ".bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(examples: list[Example]) -> list[str]:
    return [example.path.name for example in examples]


def test_every_extension_is_found_in_upper_and_lower_case(tmp_path: Path) -> None:
    found = ["a.jpg", "b.JPEG", "c.Png", "d.webp", "e.BMP", "f.gif", "g.tif", "h.TIFF"]
    touch(tmp_path, *found)

    assert names(find_examples([tmp_path], "a cup")) == found


def test_numbers_sort_by_value_whatever_order_the_system_lists(tmp_path: Path) -> None:
    ordered = ["1.png", "2.png", "02b.png", "10.png", "a1.png", "A2.png", "a10.png", "b.png"]
    ordered += ["é9.png", "é10.png"]
    shuffled = list(ordered)
    random.Random(3).shuffle(shuffled)
    touch(tmp_path, *shuffled)

    assert names(find_examples([tmp_path], "a cup")) == ordered


def test_names_that_differ_only_in_case_or_zeros_have_one_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.png", "a01.png", "a1.png", "B.jpg")

    assert names(find_examples([tmp_path], "")) == ["a01.png", "a1.png", "B.jpg", "b.png"]


def test_a_clean_folder_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "dog.jpg", "dog.txt")

    with caplog.at_level(logging.INFO):
        find_examples([tmp_path], "a cup")

    assert caplog.messages == []


def draw_with_masks(folder: Path) -> None:
    for name in ("cat.png", "dog.png", "dog-mask.png"):
        Image.new("RGB", (8, 8)).save(folder / name)


def test_masks_belong_to_their_photos_and_are_no_photos(tmp_path: Path) -> None:
    draw_with_masks(tmp_path)
    listed = tuple(sorted(tmp_path.iterdir()))
    for entries in [(tmp_path,), listed, (tmp_path / "cat.png", tmp_path / "dog.png")]:
        found = find_photos(DatasetConfig(photos=entries, prompt="a"))
        assert names(found) == ["cat.png", "dog.png"]
        assert [photo.mask for photo in found] == [None, tmp_path / "dog-mask.png"]
        assert [mirrored.mask for mirrored in with_mirrors(found)][2:] == [found[1].mask] * 2


def test_masks_that_are_not_used_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    draw_with_masks(tmp_path)
    off = DatasetConfig(photos=(tmp_path,), prompt="a", masks="off")
    assert [photo.mask for photo in find_photos(off)] == [None, None]
    find_examples([tmp_path], "a cup", is_prior=True)
    end = "(1): dog-mask.png. If these are photos, rename them."
    assert caplog.messages == [
        f"Masks are not used, because dataset.masks is off {end}",
        f"Masks are not used, because class images are trained whole {end}",
    ]


def test_random_backgrounds_need_masks(tmp_path: Path) -> None:
    draw_with_masks(tmp_path)
    dataset = DatasetConfig(photos=(tmp_path,), prompt="a", random_backgrounds=8)
    find_photos(dataset)
    (tmp_path / "dog-mask.png").unlink()
    with pytest.raises(ValueError) as error:
        find_photos(dataset)
    assert str(error.value) == (
        "dataset.random_backgrounds is 8, but no photo has a mask. Put masks beside the photos, "
        "such as 'cat-mask.png' beside 'cat.png'; set dataset.masks to alpha if the photos are "
        "transparent; or set dataset.random_backgrounds to 0."
    )
    find_photos(replace(dataset, masks="alpha"))


def test_folders_and_files_come_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path, "one/b.png", "one/a.png", "two/a.png", "z.jpg")

    examples = find_examples([tmp_path / "z.jpg", tmp_path / "two", tmp_path / "one"], "a cup")

    paths = [str(example.path.relative_to(tmp_path).as_posix()) for example in examples]
    assert paths == ["z.jpg", "two/a.png", "one/a.png", "one/b.png"]


def test_the_caption_is_the_text_file_beside_the_image_or_else_the_prompt(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf  sks caf\xc3\xa9 cup\r\n")
    (tmp_path / "b.txt").write_bytes(b" \n")
    (tmp_path / "d.jpg.caption").write_bytes(b"a sks cup by a window")

    captions = [c for e in find_examples([tmp_path], "a photo of sks cup") for c in e.captions]

    expected = ["sks café cup", "a photo of sks cup", "a photo of sks cup"]
    expected.append("a sks cup by a window")
    assert captions == expected


def test_a_listed_file_has_its_caption_too(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("sks cup on a table", "utf-8")

    (example,) = find_examples([tmp_path / "a.jpg"], "sks cup", is_prior=True)

    assert example == Example(tmp_path / "a.jpg", ("sks cup on a table",), is_prior=True)


def test_an_example_and_its_mirror_image_differ_only_in_mirrored(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")

    twins = with_mirrors(find_examples([tmp_path], "a cup"))

    a, b = tmp_path / "a.jpg", tmp_path / "b.jpg"
    assert [(e.path, e.mirrored) for e in twins] == [(a, False), (a, True), (b, False), (b, True)]
    assert {e.captions for e in twins} == {("a cup",)}
    assert len(set(twins)) == 4


def test_a_long_caption_warns_once_with_the_text_that_is_cut_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = " ".join(["dog"] * 75) + " in Paris at night"
    examples = [
        Example(Path(f"photos/{name}.jpg"), (caption,))
        for name, caption in [("a", "a dog"), ("b", long), ("c", long), ("d", "a cat")]
    ]

    warn_of_cut_captions(examples, ClipTokenizer().cut_text)

    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        (
            "WARNING",
            "The caption of 'b.jpg' is longer than the text encoder can read. This end of it is "
            "ignored: 'in Paris at night'. Shorten the caption.",
        )
    ]


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        find_examples([tmp_path / "dogs"], "a cup")

    dogs = tmp_path / "dogs"
    assert str(error.value) == f"'{dogs}' does not exist. Name a folder of images, or images."


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".DS_Store", "deeper/notes.txt")

    with pytest.raises(ValueError, match="No images") as error:
        find_examples([tmp_path], "a cup")

    assert str(error.value) == f"No images in {tmp_path}. Looked for {ENDINGS}."


def test_a_listed_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog.safetensors")

    with pytest.raises(ValueError, match="not a supported") as error:
        find_examples([tmp_path / "dog.safetensors"], "a cup")

    assert str(error.value) == (
        f"'{tmp_path / 'dog.safetensors'}' is not a supported image. Use {ENDINGS}, or a folder."
    )


def test_a_listed_file_in_a_format_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "dog.jxl")

    with pytest.raises(ValueError, match="JPEG XL") as error:
        find_examples([tmp_path / "dog.jxl"], "a cup")

    assert str(error.value) == (
        "'dog.jxl' is an image in the format JPEG XL, which cannot be read. Convert such "
        "photos to JPEG or PNG."
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "dog.jpg")
    assert names(find_examples([tmp_path / "dog.jpg"], "a cup")) == ["dog.jpg"]


def test_the_second_caption_of_a_photo_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg")
    for name in ("a.txt", "a.caption", "a.jpg.txt"):
        (tmp_path / name).write_text(f"a cup from {name}", "utf-8")

    (example,) = find_examples([tmp_path], "a cup")

    assert example.captions == ("a cup from a.txt",)
    assert caplog.messages == [
        "'a.jpg' has several captions. Only 'a.txt' is used, and not a.jpg.txt, a.caption. Keep "
        "one of them."
    ]
    caplog.clear()
    for name in ("a.txt", "a.caption"):
        (tmp_path / name).unlink()
    (example,) = find_examples([tmp_path], "a cup")
    assert (example.captions, caplog.messages) == (("a cup from a.jpg.txt",), [])


def test_several_lines_are_joined_and_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_bytes(b"a cup\r\non a table\r\n")
    (tmp_path / "c.txt").write_bytes(b"a cup\n\n")

    examples = find_examples([tmp_path], "a cup")

    assert [e.captions for e in examples] == [("a cup\non a table",)] * 2 + [("a cup",)]
    assert caplog.messages == [
        "All lines of a caption are joined into one prompt. Captions with several lines: a.txt, "
        "b.txt. A photo has only one caption."
    ]


def test_captions_without_the_subject_are_reported_for_photos_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "a.txt").write_text("on the beach", "utf-8")

    for options in ({"is_prior": True}, {"quiet": True}, {}):
        assert caplog.messages == []
        find_examples([tmp_path], "a photo of sks dog", **options)

    assert [message[:56] for message in caplog.messages] == [
        "1 of 1 captions contain none of the words sks, dog of th"
    ]


def test_an_image_listed_twice_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg")

    with pytest.raises(ValueError, match="2 times") as error:
        find_examples([tmp_path, tmp_path / "b.jpg"], "a cup")

    assert str(error.value) == f"'{tmp_path / 'b.jpg'}' is named 2 times. Name each image once."


def test_a_caption_in_another_encoding_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text("café", "latin-1")

    with pytest.raises(ValueError, match="UTF-8") as error:
        find_examples([tmp_path], "a cup")

    assert str(error.value) == (
        f"The caption '{tmp_path / 'a.txt'}' is not UTF-8 text. Save it as UTF-8."
    )


@pytest.mark.posix
def test_a_pipe_is_no_photo(tmp_path):
    """Reading it would wait forever."""
    os.mkfifo(tmp_path / "photo.png")
    with pytest.raises(ValueError, match="is not a supported image"):
        find_examples([tmp_path / "photo.png"], "a dog")
