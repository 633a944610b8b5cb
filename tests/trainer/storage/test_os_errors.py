"""Errors of the file system in words: a line that says what to do."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.__main__ import main
from trainer.storage import os_errors
from trainer.storage.os_errors import ADVICE, explain


def error(number: int, path: str | None = "a/b") -> OSError:
    return OSError(number, os.strerror(number), path)


@pytest.mark.parametrize("number", ADVICE)
def test_each_error_names_the_file_and_what_to_do(number):
    text = explain(error(number))
    assert text.startswith("'a/b' cannot be ")
    assert "{" not in text
    assert explain(error(number, None)) == str(error(number, None))


def test_other_errors_are_as_the_system_says_them():
    assert explain(error(errno.EIO)) == str(error(errno.EIO))
    assert explain(OSError("made by a library")) == "made by a library"
    assert explain(BrokenPipeError(errno.EPIPE, "Broken pipe")) == os_errors.NO_READER


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
    "ro": "'{disk}/out' cannot be written, because its disk is read-only. Choose another folder.",
    "nr_inodes=3": "'{disk}/out/runs' cannot be written, because its disk has space, but no room "
    "for more files. Delete files that you do not need, then run the same again.",
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
