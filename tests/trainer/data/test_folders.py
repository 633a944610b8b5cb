"""What a folder contains, and that nothing of a user's is left out in silence."""

import logging
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.trainer.data.test_formats import heif
from trainer.data.folders import images_in, look_into

JPEG_XL = b"\0\0\0\x0cJXL \r\n\x87\n"
INSTALL = f'\'"{sys.executable}" -m pip install'


@pytest.fixture(autouse=True)
def without_pillow_heif(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def draw(folder: Path, *names: str, kind: str = "JPEG") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name, format=kind)


def write(folder: Path, *names: str, content: bytes = b"text") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def found(folder: Path) -> list[str]:
    return [path.name for path in images_in(folder)]


@pytest.fixture
def logged(caplog):
    """The level and text of what was logged."""
    caplog.set_level(logging.INFO)
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_the_content_decides_what_is_an_image(tmp_path, logged):
    """.jfif is what browsers on Windows save."""
    draw(tmp_path, "a.jfif", "b.JPE", "c", "d.heic", "e.png")
    draw(tmp_path, "f.mpo", "g.dib", kind="BMP")
    assert found(tmp_path) == ["a.jfif", "b.JPE", "c", "d.heic", "e.png", "f.mpo", "g.dib"]
    assert logged() == []


def test_photos_in_formats_that_cannot_be_read_are_named(tmp_path, logged):
    draw(tmp_path, "a.png")
    write(tmp_path, "IMG_1.HEIC", "IMG_2.jpg", content=heif(b"heic"))
    write(tmp_path, "c.jxl", content=JPEG_XL)
    draw(tmp_path, "d.NEF", kind="TIFF")
    assert found(tmp_path) == ["a.png"]
    unused = f"Photos in {tmp_path} are not used, because the format"
    assert logged() == [
        ("WARNING", f"{unused} JPEG XL cannot be read (1): c.jxl. Convert such photos to JPEG or "
                    "PNG."),
        ("WARNING", f"{unused} camera raw cannot be read (1): d.NEF. Convert such photos to JPEG "
                    "or PNG."),
        ("WARNING", f"{unused} HEIC cannot be read (2): IMG_1.HEIC, IMG_2.jpg. To read such "
                    f"photos, run {INSTALL} pillow-heif', or convert them to JPEG."),
    ]  # fmt: skip


def test_a_folder_of_heic_photos_says_so(tmp_path):
    write(tmp_path, "IMG_1.HEIC", "IMG_2.heic", content=heif(b"heic"))
    with pytest.raises(ValueError, match="HEIC") as error:
        images_in(tmp_path)
    assert str(error.value) == (
        f"None of the photos in {tmp_path} can be read. In the format HEIC (2): IMG_1.HEIC, "
        f"IMG_2.heic. To read such photos, run {INSTALL} pillow-heif', or convert them to JPEG."
    )
    draw(tmp_path, "IMG_1.HEIC", "IMG_2.jpg")
    assert found(tmp_path) == ["IMG_1.HEIC", "IMG_2.jpg"]


def test_a_folder_whose_photos_are_in_folders_inside_it_names_them(tmp_path):
    draw(tmp_path, "img/10_sks dog/1.jpg", "img/10_sks dog/2.jpg", "reg/1_dog/1.jpg")
    with pytest.raises(ValueError, match="No images") as error:
        images_in(tmp_path)
    assert str(error.value) == (
        f"No images in {tmp_path} itself, but in folders inside it: 'img/10_sks dog' (2), "
        "'reg/1_dog' (1). Choose such a folder instead."
    )
    assert found(tmp_path / "img" / "10_sks dog") == ["1.jpg", "2.jpg"]


def test_photos_in_a_folder_beside_photos_are_named(tmp_path, logged):
    draw(tmp_path, "a.jpg", "10_sks dog/1.jpg", ".cache/2.jpg")
    write(tmp_path, "10_sks dog/2.HEIC", content=heif(b"heic"))
    (tmp_path / "empty").mkdir()
    assert found(tmp_path) == ["a.jpg"]
    assert logged() == [
        ("WARNING", f"The photos in folders inside {tmp_path} are not used: '10_sks dog' (2). "
                    "Choose such a folder instead, or move its photos."),
        ("INFO", f"Skipped 2 entries in {tmp_path} that are not images: .cache, empty."),
    ]  # fmt: skip


def test_masks_are_no_photos(tmp_path, logged):
    draw(tmp_path, "dog.jpg", "dog-masklabel.png", "dog_mask.jpg", "cat_mask.jpg", "mask.jpg")
    write(tmp_path, "cow.heic", content=heif(b"heic"))
    draw(tmp_path, "cow-mask.png")
    assert found(tmp_path) == ["cat_mask.jpg", "dog.jpg", "mask.jpg"]
    assert ["HEIC" in message for _, message in logged()] == [True]
    masks = look_into(tmp_path).masks
    assert masks == {
        tmp_path / "dog.jpg": [tmp_path / "dog-masklabel.png", tmp_path / "dog_mask.jpg"]
    }


def test_backup_copies_of_images_are_not_trained_but_named(tmp_path, logged):
    draw(tmp_path, "a.jpg", "a.jpg_original", "b.jpg.bak")
    assert found(tmp_path) == ["a.jpg"]
    assert logged() == [
        ("WARNING", f"Images in {tmp_path} are not used, because their names do not end like those "
                    "of images (2): a.jpg_original, b.jpg.bak. To train on them, rename them to "
                    ".jpg or .png."),
    ]  # fmt: skip


def test_texts_that_are_no_caption_are_named(tmp_path, logged):
    draw(tmp_path, "a.jpg", "b.jpg")
    write(tmp_path, "a.txt", "b.caption", "A 1.txt", "a.json", "b.tags", "metadata.jsonl")
    assert found(tmp_path) == ["a.jpg", "b.jpg"]
    assert logged() == [
        ("WARNING", f"Text files in {tmp_path} are not used, because they are not the caption of a "
                    "photo (4): A 1.txt, a.json, b.tags, metadata.jsonl. The caption of "
                    "'a.jpg' would be 'a.txt'."),
    ]  # fmt: skip


def test_other_entries_are_counted_in_one_line_of_information(tmp_path, logged):
    draw(tmp_path, "dog.jpg")
    write(tmp_path, "Thumbs.db", ".DS_Store", "._dog.jpg", "manifest.jsonl", "dog.xmp")
    write(tmp_path, "model.safetensors", "dog.mov", content=bytes(64))
    assert found(tmp_path) == ["dog.jpg"]
    assert logged() == [
        ("INFO", f"Skipped 7 entries in {tmp_path} that are not images: ._dog.jpg, .DS_Store, "
                 "dog.mov, dog.xmp, manifest.jsonl, and 2 more."),
    ]  # fmt: skip


def test_captions_of_skipped_photos_are_not_named_again(tmp_path, logged):
    draw(tmp_path, "a.jpg")
    write(tmp_path, "b.heic", content=heif(b"heic"))
    write(tmp_path, "b.txt")
    assert found(tmp_path) == ["a.jpg"]
    assert ["HEIC" in message for _, message in logged()] == [True]


@pytest.mark.posix
def test_links_to_missing_photos_are_named_and_no_device_is_opened(tmp_path, logged):
    draw(tmp_path, "a.jpg", "@dog.jpg")
    (tmp_path / "b.jpg").symlink_to("gone.jpg")
    os.mkfifo(tmp_path / "c.jpg")  # opening it would wait for ever
    assert found(tmp_path) == ["@dog.jpg", "a.jpg"]
    assert logged() == [
        ("WARNING", f"Links in {tmp_path} lead to files that do not exist (1): b.jpg. Restore the "
                    "files, or remove the links."),
        ("INFO", f"Skipped 1 entries in {tmp_path} that are not images: c.jpg."),
    ]  # fmt: skip


def warnings_of(logged) -> list[str]:
    return [text for level, text in logged() if level == "WARNING"]


@pytest.mark.parametrize(
    ("name", "better", "advice"),
    [
        ("b.heic", "b.jpg", "convert them to JPEG"),
        ("b.jxl", "b.png", "Convert such photos to JPEG or PNG"),
        ("b.nef", "b.jpg", "Convert such photos to JPEG or PNG"),
        ("b.jpg_original", "b.jpg", "rename them to .jpg or .png"),
        ("b.jpg.bak", "b.png", "rename them to .jpg or .png"),
        ("10_sks dog/b.jpg", "b.jpg", "move its photos"),
        ("notes.txt", "a.txt", "The caption of 'a.jpg' would be 'a.txt'"),
    ],
)
def test_the_advice_of_each_warning_works(tmp_path, logged, caplog, name, better, advice):
    draw(tmp_path, "a.jpg", name, kind="TIFF" if name.endswith("nef") else "JPEG")
    unreadable = {".heic": heif(b"heic"), ".jxl": JPEG_XL, ".txt": b"a dog"}
    file, ending = tmp_path / name, Path(name).suffix
    if ending in unreadable:
        file.write_bytes(unreadable[ending])
    assert found(tmp_path) == ["a.jpg"]
    (warning,) = warnings_of(logged)
    assert advice in warning
    caplog.clear()
    file.rename(tmp_path / better)
    if "onvert" in advice:
        draw(tmp_path, better, kind=Path(better).suffix[1:].upper().replace("JPG", "JPEG"))
    assert found(tmp_path) == ["a.jpg", *([better] if better.startswith("b") else [])]
    assert warnings_of(logged) == []


@pytest.mark.posix
@pytest.mark.parametrize("is_restored", [True, False])
def test_a_link_is_restored_or_removed(tmp_path, logged, caplog, is_restored):
    draw(tmp_path, "a.jpg")
    (tmp_path / "b.jpg").symlink_to("elsewhere/gone.jpg")
    found(tmp_path)
    assert len(warnings_of(logged)) == 1
    caplog.clear()
    if is_restored:
        draw(tmp_path, ".kept/gone.jpg")
        (tmp_path / "elsewhere").symlink_to(".kept")
    else:
        (tmp_path / "b.jpg").unlink()
    assert "b.jpg" in found(tmp_path) or not is_restored
    assert [text for text in warnings_of(logged) if "Links" in text] == []


def test_nothing_is_logged_if_quiet(tmp_path, logged):
    draw(tmp_path, "a.jpg", "more/b.jpg")
    write(tmp_path, "notes.txt")
    assert [path.name for path in images_in(tmp_path, quiet=True)] == ["a.jpg"]
    assert logged() == []
