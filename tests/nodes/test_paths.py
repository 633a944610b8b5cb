"""Names that come from the network are refused or resolved to paths. Needs no ComfyUI."""

import importlib
import os
import sys
from pathlib import Path, PureWindowsPath
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
OUTSIDE = "it leads out of its folder"
BAD_CHARACTERS = (
    'names cannot contain \\ : * ? " < > | or control characters, or begin or end with a space '
    "or a dot"
)
DEVICE = "Windows reserves it for a device"


@pytest.fixture(scope="module")
def paths():
    # Packages without their own __init__.py, which needs ComfyUI.
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    yield importlib.import_module("pack.nodes.paths")
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("..", OUTSIDE),
        ("a/../../b", OUTSIDE),
        ("/etc", OUTSIDE),
        ("", OUTSIDE),
        ("a//b", OUTSIDE),
        ("./a", OUTSIDE),
        ("..\\a", BAD_CHARACTERS),
        ("C:\\photos", BAD_CHARACTERS),
        ("C:photos", BAD_CHARACTERS),
        ("\\\\server\\share", BAD_CHARACTERS),
        ("a ", BAD_CHARACTERS),
        ("a.", BAD_CHARACTERS),
        (".git", BAD_CHARACTERS),
        ("a\0b", BAD_CHARACTERS),
        ("a\nb", BAD_CHARACTERS),
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
def test_plain_names_are_accepted(paths, tmp_path, name):
    assert paths.inside(tmp_path, name) == tmp_path / name


parts = st.sampled_from(["..", ".", "", "a", "b", "C:", "\\", "..\\a", "nul", "~", "%2e%2e", "강"])


@given(st.lists(parts, max_size=5).map("/".join) | st.text())
def test_no_name_leads_out_of_its_folder(paths, name):
    root = Path("/data/input")
    try:
        path = paths.inside(root, name)
    except ValueError:
        return
    assert path != root
    assert Path(os.path.normpath(path)).is_relative_to(root)
    on_windows = PureWindowsPath("C:\\data\\input", name)
    assert on_windows.is_relative_to("C:\\data\\input")
    assert ".." not in on_windows.parts


@pytest.mark.posix
@pytest.mark.parametrize("name", ["pets", "pets/dogs"])
@pytest.mark.parametrize("is_relative", [False, True])
def test_links_out_of_the_folder_are_refused(paths, tmp_path, name, is_relative):
    root, secret = tmp_path / "input", tmp_path / "secret"
    root.mkdir()
    (secret / "dogs").mkdir(parents=True)
    os.symlink("../secret" if is_relative else secret, root / "pets")
    with pytest.raises(ValueError) as caught:
        paths.inside(root, name)
    assert str(caught.value) == (
        f"{name!r} is a link that leads out of {root}. Copy the files there instead."
    )


@pytest.mark.posix
def test_a_link_to_itself_is_not_a_folder(paths, tmp_path):
    os.symlink("dogs", tmp_path / "dogs")
    assert not paths.inside(tmp_path, "dogs").is_dir()


@pytest.mark.posix
def test_a_link_within_the_folder_and_a_linked_folder_are_accepted(paths, tmp_path):
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
