"""Which text file is the caption of which photo, and how it is read."""

from pathlib import Path

import pytest

from trainer.data.captions import CaptionFiles, missing_subject, new_caption_file, read_caption


def files_of(folder: Path, image: str, *names: str) -> list[str]:
    for name in names:
        (folder / name).touch()
    return [file.name for file in CaptionFiles(folder.iterdir()).of(folder / image)]


@pytest.mark.parametrize("name", [
    "dog.txt", "dog.TXT", "Dog.txt", "dog.caption", "dog.Caption", "dog.jpg.txt", "dog.JPG.txt",
    "dog.jpg.caption",
])  # fmt: skip
def test_each_of_these_files_is_the_caption_of_a_photo(tmp_path, name):
    assert files_of(tmp_path, "dog.jpg", name, "dog2.txt", "dog.json", "a.dog.txt") == [name]


def test_a_name_may_have_dots_and_no_extension(tmp_path):
    assert files_of(tmp_path, "dog.v2.jpg", "dog.v2.txt", "dog.txt") == ["dog.v2.txt"]
    assert files_of(tmp_path, "dog", "dog.txt") == ["dog.txt"]


def test_accents_may_be_encoded_in_two_ways(tmp_path):
    assert files_of(tmp_path, "caf\u00e9.jpg", "cafe\u0301.txt") == ["cafe\u0301.txt"]


def test_the_first_of_several_captions_is_the_one_that_was_always_read(tmp_path):
    names = ["dog.caption", "dog.jpg.caption", "dog.jpg.txt", "dog.txt"]
    found = files_of(tmp_path, "dog.jpg", *names)
    assert found == ["dog.txt", "dog.jpg.txt", "dog.caption", "dog.jpg.caption"]


def test_names_that_differ_only_in_case_prefer_the_same_case(tmp_path):
    (tmp_path / "a").touch()
    if (tmp_path / "A").exists():
        pytest.skip("this file system ignores case")
    found = files_of(tmp_path, "dog.jpg", "DOG.TXT", "dog.TXT", "dog.txt")
    assert found == ["dog.txt", "DOG.TXT", "dog.TXT"]


@pytest.mark.parametrize(("others", "name"), [
    (["cat.jpg"], "dog.txt"),
    (["dog.png"], "dog.jpg.txt"),
    (["DOG.png"], "dog.jpg.txt"),
])  # fmt: skip
def test_a_new_caption_belongs_to_one_image_only(tmp_path, others, name):
    image = tmp_path / "dog.jpg"
    file = new_caption_file(image, [image, *(tmp_path / other for other in others)])
    assert file == tmp_path / name
    file.touch()
    assert files_of(tmp_path, "dog.jpg") == [name]
    assert files_of(tmp_path, others[0]) == []


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("text", ["sks café", "개 사진", "two\nlines"])
def test_utf_8_and_marked_utf_16_are_read(tmp_path, encoding, text):
    file = tmp_path / "a.txt"
    file.write_bytes(f"  {text}\r\n".encode(encoding))
    assert read_caption(file) == text


@pytest.mark.parametrize("content", [
    "a sks dog".encode("utf-16-le"),
    "a sks dog".encode("utf-16-be"),
    "a sks dog".encode("utf-32"),
    b"a sks dog\0",
    "café".encode("latin-1"),
    b"\xff\xfea",
], ids=["LE", "BE", "UTF-32", "NUL", "Latin-1", "cut"])  # fmt: skip
def test_other_encodings_are_refused(tmp_path, content):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="UTF-8") as error:
        read_caption(file)
    assert str(error.value) == f"The caption '{file}' is not UTF-8 text. Save it as UTF-8."
    file.write_text("café", "utf-8")
    assert read_caption(file) == "café"


def warning_for(prompt: str, captions: list[str]) -> str:
    named = {Path(f"photos/{n}.jpg"): text for n, text in enumerate(captions)}
    return missing_subject(named, prompt)


def test_captions_without_the_subject_give_one_warning_with_an_example():
    captions = ["a sks dog", "on the beach", "a photo of a sofa"]
    assert warning_for("a photo of sks dog", captions) == (
        "2 of 3 captions contain none of the words sks, dog of the prompt 'a photo of sks dog', so "
        "their photos do not teach these words, such as '1.jpg' with 'on the beach'. Add the words "
        "for the subject to the captions."
    )
    followed = ["a sks dog", "a sks dog on the beach", "a photo of a sks dog on a sofa"]
    assert warning_for("a photo of sks dog", followed) == ""


@pytest.mark.parametrize(("prompt", "caption"), [
    ("a photo of sks dog", "SKS, outdoors"),
    ("a photo of sks dog", "two dogs"),
    ("a photo of <my-dog>", "<my-dog> seen from one side"),
    ("a picture in the style of <ink>", "a boat, <ink>"),
    ("개 사진", "개가 뛰는 사진"),
    ("a photo", "anything"),
    ("", "anything"),
])  # fmt: skip
def test_a_word_of_the_subject_is_enough(prompt, caption):
    assert warning_for(prompt, [caption]) == ""


def test_a_word_inside_another_does_not_count():
    assert warning_for("ohwx man", ["a woman"]) != ""


def test_a_caption_of_megabytes_is_refused_before_it_is_read(tmp_path):
    file = tmp_path / "dog.txt"
    with file.open("wb") as opened:
        opened.truncate(10**12)  # takes no space
    with pytest.raises(ValueError) as caught:
        read_caption(file)
    assert str(caught.value) == (
        f"The caption '{file}' has {10**12} bytes, but at most 100000 are possible. Shorten it."
    )


def test_a_warning_shows_the_beginning_of_a_long_caption():
    text = missing_subject({Path("a.png"): "x" * 10_000}, "a sks dog")
    assert f"with '{'x' * 300}…'." in text
