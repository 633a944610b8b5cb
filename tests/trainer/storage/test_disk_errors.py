import errno
import re

import pytest

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


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, FULL),
        (errno.EDQUOT, FULL),
        (errno.EACCES, DENIED),
        (errno.EPERM, DENIED),
        (errno.EROFS, READ_ONLY),
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
