"""What is told about a folder before any run: the same as a run would."""

import logging

import pytest

from tests.trainer.data.test_folders import draw, without_pillow_heif, write  # noqa: F401
from tests.trainer.data.test_formats import heif
from trainer.data.examples import find_examples, find_photos
from trainer.data.survey import survey
from trainer.settings.config import DatasetConfig


def test_photos_come_in_the_order_of_a_run_with_their_captions(tmp_path):
    draw(tmp_path, "10.jpg", "2.jpg", "3.jpg")
    write(tmp_path, "2.txt", content=b"a sks dog\r\n")
    write(tmp_path, "3.txt", content=b"")
    found = survey(tmp_path, "a photo of sks dog")
    assert [photo.path.name for photo in found.photos] == ["2.jpg", "3.jpg", "10.jpg"]
    assert [photo.caption for photo in found.photos] == ["a sks dog", "", ""]
    files = [photo.caption_file for photo in found.photos]
    assert files == [tmp_path / "2.txt", tmp_path / "3.txt", None]
    assert (found.fault, found.notes) == ("", [])


def test_masks_are_named_with_their_photos(tmp_path):
    draw(tmp_path, "a.jpg", "a-mask.png", "b.jpg")
    write(tmp_path, "a.txt", content=b"a sks dog")
    found = survey(tmp_path, "")
    assert [(photo.path.name, photo.mask) for photo in found.photos] == [
        ("a.jpg", tmp_path / "a-mask.png"), ("b.jpg", None),
    ]  # fmt: skip


def test_its_notes_are_the_warnings_of_a_run(tmp_path, caplog):
    draw(tmp_path, "a.jpg", "a-mask.png", "a_mask.png", "b.jpg", "more/c.jpg", "d.jpg.bak")
    write(tmp_path, "a.txt", content=b"on the beach")
    write(tmp_path, "b.txt", "b.caption", content=b"a sks dog\non the beach")
    write(tmp_path, "notes.txt")
    write(tmp_path, "e.heic", content=heif(b"heic"))
    with caplog.at_level(logging.WARNING):
        find_photos(DatasetConfig(photos=(tmp_path,), prompt="a photo of sks dog"))
    assert len(caplog.messages) == 8
    assert survey(tmp_path, "a photo of sks dog").notes == caplog.messages


@pytest.mark.usefixtures("without_pillow_heif")
def test_photos_that_cannot_be_read_follow_with_the_reason(tmp_path):
    draw(tmp_path, "b.jpg")
    write(tmp_path, "a.heic", content=heif(b"heic"))
    photo, unreadable = survey(tmp_path, "").photos
    assert (photo.path.name, photo.fault, photo.is_used) == ("b.jpg", "", True)
    assert (unreadable.path.name, unreadable.is_used) == ("a.heic", False)
    assert unreadable.fault.startswith("'a.heic' is an image in the format HEIC, which cannot be ")


def test_a_caption_that_cannot_be_read_is_the_fault_of_its_photo_alone(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, "a.txt", content="café".encode("latin-1"))
    bad, good = survey(tmp_path, "").photos
    with pytest.raises(ValueError, match="UTF-8") as error:
        find_examples([tmp_path], "")
    assert bad.fault == str(error.value)
    assert (bad.caption, bad.caption_file) == ("", tmp_path / "a.txt")
    assert good.fault == ""


def test_a_folder_that_a_run_would_refuse_says_why(tmp_path):
    write(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match="No images in") as error:
        find_examples([tmp_path], "")
    found = survey(tmp_path, "")
    assert (found.photos, found.fault, found.notes) == ([], str(error.value), [])
