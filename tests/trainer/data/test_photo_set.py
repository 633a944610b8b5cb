"""Filling and changing a folder of photos."""

import os

import pytest
from PIL import Image

from tests.trainer.data.test_folders import draw, write
from trainer.data.examples import find_examples
from trainer.data.photo_set import MAX_CAPTION, REMOVED, PhotoSet
from trainer.data.survey import survey


@pytest.fixture
def photos(tmp_path):
    draw(tmp_path, "a.jpg", "b.jpg")
    return PhotoSet(tmp_path)


def captions(photos):
    found = find_examples([photos.folder], "", quiet=True)
    return {example.path.name: example.captions[0] for example in found}


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# --- Names of new photos ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("c.jpg", "c.jpg"),
        ("c.HEIC", "c.HEIC"),
        ("../../c.jpg", "c.jpg"),
        ("..\\..\\c.jpg", "c.jpg"),
        ("C:\\photos\\c.jpg", "c.jpg"),
        ("/etc/c.jpg", "c.jpg"),
        ("aux.jpg", "_aux.jpg"),
        ("c:d.jpg", "c-d.jpg"),
        ("c\0d.jpg", "c-d.jpg"),
        ("a.jpg", "a.jpg"),
        ("A.JPG", "A (1).JPG"),
        ("film.mp4", None),
        ("c.txt", None),
        (".jpg", None),
        ("._c.jpg", None),
        ("c", None),
    ],
)
def test_new_photos_get_safe_names(photos, name, safe):
    assert photos.names_for([name]) == [safe]


def test_new_photos_do_not_share_a_name_on_disks_that_ignore_case(tmp_path):
    names = ["cafe\u0301.jpg", "CAF\u00c9.jpg", "dog.jpg", "Dog.jpg", "dog.JPG"]
    found = PhotoSet(tmp_path / "new").names_for(names)
    assert found == ["caf\u00e9.jpg", "CAF\u00c9 (1).jpg", "dog.jpg", "Dog (1).jpg", "dog (2).JPG"]


@pytest.mark.posix
def test_a_new_photo_is_not_written_through_a_link(photos, tmp_path):
    os.symlink(tmp_path.parent / "elsewhere.jpg", tmp_path / "c.jpg")
    assert photos.names_for(["c.jpg"]) == ["c (1).jpg"]


# --- Captions -----------------------------------------------------------------------------------


def test_a_caption_is_written_beside_its_photo_and_read_by_a_run(photos):
    photos.write_caption("a.jpg", "  a sks 컵 \n")
    assert files(photos.folder) == ["a.jpg", "a.txt", "b.jpg"]
    assert captions(photos) == {"a.jpg": "a sks 컵", "b.jpg": ""}
    assert (photos.folder / "a.txt").read_bytes() == "a sks 컵\n".encode()


@pytest.mark.parametrize("name", ["a.caption", "A.TXT", "a.jpg.txt"])
def test_the_caption_file_that_exists_is_used(photos, name):
    write(photos.folder, name, content="odd \u00e9".encode("latin-1"))
    photos.write_caption("a.jpg", "a sks cup")
    assert files(photos.folder) == sorted([name, "a.jpg", "b.jpg"])
    assert captions(photos)["a.jpg"] == "a sks cup"


def test_photos_that_differ_in_their_extension_get_their_own_captions(photos):
    draw(photos.folder, "a.png", kind="PNG")
    photos.write_caption("a.png", "one")
    photos.write_caption("a.jpg", "two")
    assert captions(photos) == {"a.jpg": "two", "a.png": "one", "b.jpg": ""}


def test_an_empty_text_is_no_caption(photos):
    photos.write_caption("a.jpg", " ")
    assert files(photos.folder) == ["a.jpg", "b.jpg"]
    write(photos.folder, "a.txt", "a.caption", content=b"old")
    photos.write_caption("a.jpg", "")
    assert captions(photos)["a.jpg"] == ""


def test_another_caption_is_kept_unless_it_may_be_replaced(photos):
    photos.write_caption("a.jpg", "one", replace=False)
    photos.write_caption("a.jpg", "one", replace=False)
    with pytest.raises(FileExistsError) as error:
        photos.write_caption("a.jpg", "two", replace=False)
    assert str(error.value) == "'a.jpg' has another caption already, which is kept."
    assert captions(photos)["a.jpg"] == "one"
    photos.write_caption("a.jpg", "two")
    assert captions(photos)["a.jpg"] == "two"


@pytest.mark.posix
def test_a_caption_that_is_a_link_is_replaced_and_not_followed(photos, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}.txt"
    outside.write_text("theirs")
    os.symlink(outside, tmp_path / "a.txt")
    photos.write_caption("a.jpg", "mine")
    assert (outside.read_text(), captions(photos)["a.jpg"]) == ("theirs", "mine")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x" * (MAX_CAPTION + 1), "A caption can have 10000 characters, got 10001."),
        ("a\0b", "This caption is not valid text. Type it again."),
        ("a\udce9", "This caption is not valid text. Type it again."),
    ],
)
def test_texts_that_no_caption_file_can_have_are_refused(photos, text, message):
    with pytest.raises(ValueError, match="caption") as error:
        photos.write_caption("a.jpg", text)
    assert str(error.value) == message
    assert files(photos.folder) == ["a.jpg", "b.jpg"]


# --- Removing -----------------------------------------------------------------------------------


def test_a_removed_photo_is_not_trained_and_comes_back_with_its_captions(photos):
    photos.write_caption("a.jpg", "a sks cup")
    write(photos.folder, "a.jpg.caption")
    before = files(photos.folder)
    photos.remove("a.jpg")
    assert captions(photos) == {"b.jpg": ""}
    assert survey(photos.folder, "").notes == []
    assert photos.removed() == ["a.jpg"]
    assert photos.restore("a.jpg") == "a.jpg"
    assert files(photos.folder) == sorted([REMOVED, *before])
    assert captions(photos) == {"a.jpg": "a sks cup", "b.jpg": ""}


def test_nothing_is_overwritten_by_removing_and_restoring(photos):
    for text in ("first", "second"):
        draw(photos.folder, "a.jpg")
        photos.write_caption("a.jpg", text)
        photos.remove("a.jpg")
    assert photos.removed() == ["a (1).jpg", "a.jpg"]
    draw(photos.folder, "a.jpg")
    photos.write_caption("a.jpg", "third")
    assert photos.restore("a.jpg") == "a (1).jpg"
    assert photos.restore("a (1).jpg") == "a (1) (1).jpg"
    assert captions(photos) == {
        "a.jpg": "third", "a (1).jpg": "first", "a (1) (1).jpg": "second", "b.jpg": "",
    }  # fmt: skip


def test_a_photo_without_caption_is_not_overwritten_either(photos):
    contents = []
    for side in (8, 9):
        Image.new("RGB", (side, side)).save(photos.folder / "a.jpg")
        contents.append((photos.folder / "a.jpg").read_bytes())
        photos.remove("a.jpg")
    found = [(photos.folder / REMOVED / name).read_bytes() for name in ("a.jpg", "a (1).jpg")]
    assert found == contents


def test_a_caption_that_two_photos_share_stays_with_the_other(photos):
    draw(photos.folder, "a.png", kind="PNG")
    write(photos.folder, "a.txt", content=b"shared")
    photos.remove("a.png")
    assert captions(photos)["a.jpg"] == "shared"


@pytest.mark.posix
def test_removed_photos_do_not_leave_the_folder_through_a_link(photos, tmp_path):
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    os.symlink(outside, photos.folder / REMOVED)
    for act in (photos.remove, photos.restore):
        with pytest.raises(ValueError, match="is a link"):
            act("a.jpg")
    assert (files(outside), "a.jpg" in files(photos.folder)) == ([], True)


@pytest.mark.parametrize(
    "name",
    ["c.jpg", "", ".", "..", "../a.jpg", "./a.jpg", "/etc/passwd", "a.jpg\0", "A.jpg", "a.txt"],
)
def test_only_photos_of_the_set_can_be_changed(photos, name):
    write(photos.folder, "a.txt")
    before = files(photos.folder)
    acts = (photos.remove, photos.restore, lambda name: photos.write_caption(name, "x"))
    for act in acts:
        with pytest.raises(FileNotFoundError) as error:
            act(name)
        assert str(error.value) == f"There is no photo {name!r} here any more."
    assert [name for name in files(photos.folder) if name != REMOVED] == before


# --- Masks --------------------------------------------------------------------------------------


def test_a_mask_goes_and_comes_with_its_photo(photos):
    draw(photos.folder, "a-mask.png", "b_mask.png")
    photos.remove("a.jpg")
    assert files(photos.folder) == [
        ".removed", ".removed/a-mask.png", ".removed/a.jpg", "b.jpg", "b_mask.png",
    ]  # fmt: skip
    assert photos.removed() == ["a.jpg"]
    photos.restore("a.jpg")
    assert survey(photos.folder, "").photos[0].mask == photos.folder / "a-mask.png"
    assert photos.removed() == []


def test_a_mask_is_renamed_with_its_photo(photos):
    draw(photos.folder, "a-masklabel.png")
    photos.remove("a.jpg")
    draw(photos.folder, "a.jpg")
    assert photos.restore("a.jpg") == "a (1).jpg"
    found = survey(photos.folder, "").photos
    assert {photo.path.name: photo.mask and photo.mask.name for photo in found} == {
        "a.jpg": None, "a (1).jpg": "a (1)-mask.png", "b.jpg": None,
    }  # fmt: skip


def test_a_mask_that_another_photo_shares_stays(photos):
    draw(photos.folder, "a.png", "a-mask.png")
    photos.remove("a.jpg")
    assert survey(photos.folder, "").photos[0].mask == photos.folder / "a-mask.png"
