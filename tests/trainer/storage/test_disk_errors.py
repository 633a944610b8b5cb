import errno
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.storage import disk_errors
from trainer.storage.disk_errors import explained, naming

OTHER = (
    "'/runs/manifest.json' cannot be used: it broke. Check the file and its disk, then run the "
    "same again."
)
DENIED = (
    "'/runs/manifest.json' cannot be used, because access is denied. Change the permissions of the "
    "file or of its folder, or close the program that keeps it open, then run the same again."
)
FULL = (
    "No space is left on the disk of '/runs/manifest.json'. Free some space there, then run the "
    "same again."
)
READ_ONLY = (
    "The disk of '/runs/manifest.json' is read-only. Make it writable, or choose another folder."
)
NOT_A_FOLDER = (
    "'/runs/manifest.json' cannot be used, because a part of its path is a file, not a folder. "
    "Choose another folder."
)
TOO_LONG = (
    "'/runs/manifest.json' cannot be used, because it is too long for this system. Choose a "
    "shorter name or another folder."
)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, FULL),
        (errno.EDQUOT, FULL),
        (errno.EACCES, DENIED),
        (errno.EPERM, DENIED),
        (errno.EROFS, READ_ONLY),
        (errno.ENOTDIR, NOT_A_FOLDER),
        (errno.ENAMETOOLONG, TOO_LONG),
        (errno.EIO, OTHER),
        (errno.ENOLCK, OTHER),
    ],
)
def test_an_error_of_a_disk_says_what_to_do(number, message):
    given = OSError(number, "it broke", "/runs/manifest.json")
    with pytest.raises(OSError) as caught, explained():
        raise given
    assert str(caught.value) == message
    assert (type(caught.value), caught.value.errno) == (type(given), number)


def test_a_path_that_is_too_long_for_windows_is_said_to_be(monkeypatch):
    monkeypatch.setattr(disk_errors, "MAX_PATH", 259)
    for length, message in ((259, "No such file"), (260, "too long for this system")):
        path = "/runs/" + "a" * (length - len("/runs/"))
        with pytest.raises(FileNotFoundError, match=message), explained():
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)


def test_of_two_names_the_new_one_is_said():
    with pytest.raises(OSError) as caught, explained():
        raise OSError(errno.EIO, "it broke", "/runs/.manifest.part", None, "/runs/manifest.json")
    assert str(caught.value) == OTHER


def test_errors_with_words_of_their_own_stay():
    for given in (OSError("Choose another folder."), OSError(errno.EIO, "it broke"), ValueError()):
        with pytest.raises(type(given)) as caught, explained():
            raise given
        assert caught.value is given


def test_errors_that_name_no_file_or_a_temporary_one_name_this_one(tmp_path):
    for given in (OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full", "part")):
        with pytest.raises(OSError) as caught, naming(tmp_path / "a"):
            raise given
        found = caught.value
        assert (found.errno, found.strerror, found.filename) == (
            errno.ENOSPC, "full", str(tmp_path / "a"),
        )  # fmt: skip


def test_an_error_without_a_number_keeps_its_text(tmp_path):
    """Libraries written in Rust raise such."""
    with pytest.raises(OSError) as caught, explained(), naming(tmp_path / "a"):
        raise OSError("No such device (os error 19)")
    assert re.fullmatch(
        r"'.*a' cannot be used: No such device \(os error 19\)\. Check the file and its disk, then "
        r"run the same again\.",
        str(caught.value),
    )


def test_a_reader_that_has_ended_is_named():
    with pytest.raises(BrokenPipeError) as caught, explained():
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    assert str(caught.value) == (
        "The program that reads this output has ended. Run the same again without it."
    )


@pytest.fixture(params=["ro", "nr_inodes=3"])
def disk(request, tmp_path) -> Iterator[Path]:
    """A read-only disk, and one that has room for two files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", request.param, "tmpfs", str(folder)]
    try:
        done = subprocess.run(mounting, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("this system has no mount")
    if done.returncode:
        pytest.skip("this user may not mount disks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


EXPECTED = {
    "ro": "The disk of '{disk}/out' is read-only. Make it writable, or choose another folder.",
    "nr_inodes=3": "The disk of '{disk}/out/runs' has space, but no room for more files. Delete "
    "files there that you do not need, then run the same again.",
}


@pytest.mark.posix
def test_a_disk_that_takes_no_files_is_reported_in_one_line(
    disk, request, tmp_path, caplog, draw_photos
):
    photos = draw_photos(tmp_path / "photos", 1)
    kind = request.node.callspec.params["disk"]
    if kind != "ro":
        (disk / "a").touch()
    command = [
        "train", "--base", "toy", "--dataset.photos", str(photos), "--dataset.prompt", "a cup",
        "--output.folder", str(disk / "out"), "--device", "cpu", "--steps", "1", "--vram", "off",
        "--optimizer.learning-rate", "1e-4", "--dataset.allow-upscaling",
    ]  # fmt: skip
    assert main(command) == 1
    assert caplog.messages[-1] == EXPECTED[kind].format(disk=disk)
