"""Names from the network, refused or resolved; needs no ComfyUI."""

import importlib.util
import os
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "nodes" / "paths.py"
OUTSIDE = "it leads out of its folder"
CHARACTERS = 'names have none of \\ : * ? " < > | and no space or dot at their ends'
DEVICE = "Windows reserves it for a device"


@pytest.fixture(scope="module")
def paths():
    spec = importlib.util.spec_from_file_location("paths", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("..", OUTSIDE),
        ("a/../../b", OUTSIDE),
        ("/etc", OUTSIDE),
        ("", OUTSIDE),
        ("a//b", OUTSIDE),
        ("./a", OUTSIDE),
        ("..\\a", CHARACTERS),
        ("C:\\photos", CHARACTERS),
        ("C:photos", CHARACTERS),
        ("\\\\server\\share", CHARACTERS),
        ("a ", CHARACTERS),
        ("a.", CHARACTERS),
        (".git", CHARACTERS),
        ("a\0b", CHARACTERS),
        ("a\nb", CHARACTERS),
        ("con", DEVICE),
        ("photos/NUL", DEVICE),
        ("aux.png", DEVICE),
        ("COM1", DEVICE),
        ("lpt9.tar.gz", DEVICE),
    ],
)
def test_names_that_are_not_plain_are_refused(paths, tmp_path, name, fault):
    with pytest.raises(ValueError) as caught:
        paths.inside(tmp_path, name)
    assert str(caught.value) == (
        f"{name!r} cannot be used as a name: {fault}. Choose one from the menu, or a plain name."
    )


@pytest.mark.parametrize("name", ["dogs", "dogs/small ones", "강아지", "a..b", "console"])
def test_plain_names_are_taken(paths, tmp_path, name):
    assert paths.inside(tmp_path, name) == tmp_path / name


def test_links_out_of_the_folder_are_refused(paths, tmp_path):
    root, secret = tmp_path / "input", tmp_path / "secret"
    root.mkdir()
    secret.mkdir()
    os.symlink(secret, root / "dogs")
    with pytest.raises(ValueError) as caught:
        paths.inside(root, "dogs")
    assert str(caught.value) == (
        f"'dogs' is a link that leads out of {root}. Copy the files there instead."
    )


def test_a_link_within_the_folder_and_a_linked_folder_are_taken(paths, tmp_path):
    real = tmp_path / "disk"
    (real / "dogs").mkdir(parents=True)
    os.symlink(real / "dogs", real / "hounds")
    os.symlink(real, tmp_path / "input")
    assert paths.inside(tmp_path / "input", "hounds") == tmp_path / "input" / "hounds"


def test_subfolders_are_named_from_the_root_without_hidden_ones(paths, tmp_path):
    for name in ("b/c", "a", ".git/x", "nul", "a/d"):
        (tmp_path / name).mkdir(parents=True)
    assert paths.subfolders(tmp_path) == ["a", "a/d", "b", "b/c"]


def test_a_missing_root_has_no_subfolders(paths, tmp_path):
    assert paths.subfolders(tmp_path / "no") == []


def test_the_fingerprint_changes_with_every_kind_of_change(paths, tmp_path):
    photo, caption = tmp_path / "a.png", tmp_path / "a.txt"
    photo.write_bytes(b"1")
    seen = [paths.fingerprint([tmp_path])]
    assert paths.fingerprint([tmp_path]) == seen[0]
    for change in (
        lambda: photo.write_bytes(b"12"),
        lambda: os.utime(photo, (1, 1)),
        lambda: caption.write_text("a dog"),
        lambda: photo.rename(tmp_path / "b.png"),
        lambda: caption.unlink(),
    ):
        change()
        seen.append(paths.fingerprint([tmp_path]))
    assert len(set(seen)) == len(seen)
