import ntpath
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trainer.storage.names import (
    MAX_BYTES,
    dated,
    fault,
    is_text,
    made_safe,
    numbered,
    printable,
    shortened,
    shown_name,
)

OUTSIDE = "it leads out of its folder"
CHARACTERS = (
    'names cannot contain \\ : * ? " < > | or control characters, or begin or end with a space '
    "or a dot"
)
DEVICE = "Windows reserves it for a device"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("", OUTSIDE),
        (".", OUTSIDE),
        ("..", OUTSIDE),
        ("a/b", OUTSIDE),
        ("/", OUTSIDE),
        ("..\\a", CHARACTERS),
        ("C:", CHARACTERS),
        ("C:a", CHARACTERS),
        ("\\\\server\\share", CHARACTERS),
        ("\\\\?\\C:\\a", CHARACTERS),
        ("a:stream", CHARACTERS),
        ("*.png", CHARACTERS),
        ("a ", CHARACTERS),
        ("a.", CHARACTERS),
        (".hidden", CHARACTERS),
        ("a\0b", CHARACTERS),
        ("a\nb", CHARACTERS),
        ("con", DEVICE),
        ("NUL.txt", DEVICE),
        ("Aux .png", DEVICE),
        ("COM1", DEVICE),
        ("com²", DEVICE),
        ("lpt9.tar.gz", DEVICE),
        ("conin$", DEVICE),
        ("caf\udce9", "it is not valid Unicode"),
    ],
)
def test_invalid_names(name: str, expected: str) -> None:
    assert fault(name) == expected


@pytest.mark.parametrize(
    "name",
    ["dogs", "my dog's 2nd", "강아지", "🐶", "a..b", "console", "com10", "-rf", "$(a);&", "~"],
)
def test_valid_names(name: str) -> None:
    assert fault(name) == ""


names = st.text(st.sampled_from("abcnuloxpt$ .:/\\~*?²1\0\n강🐶\udce9"), max_size=6) | st.text()


@given(names)
@example("nul")
@example("a.")
def test_a_valid_name_is_one_path_component_on_windows_and_posix(name: str) -> None:
    """Checked against Python's own path rules, independently of ours."""
    if fault(name):
        return
    assert (PureWindowsPath("C:\\out") / name).parts == ("C:\\", "out", name)
    assert (PurePosixPath("/out") / name).parts == ("/", "out", name)
    assert ntpath.normpath(ntpath.join("C:\\out", name)) == f"C:\\out\\{name}"
    assert not PureWindowsPath(name).is_reserved()
    assert not PureWindowsPath(name).is_absolute()


def test_the_longest_name_leaves_room_for_suffixes(tmp_path: Path) -> None:
    name = "x" * MAX_BYTES
    (tmp_path / f".{name}-embedding-step1000000_00001.4194304.part").touch()


def test_a_name_with_invalid_bytes_is_not_text() -> None:
    assert not is_text("caf\udce9")
    assert is_text("café")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("%date:yyyy-MM-dd%", "2024-03-07"), ("a %date:d.M.yy%/b", "a 7.3.24/b"),
        ("%date:hhmmss% %date:h_m_s%", "040509 4_5_9"), ("%date:yyyy/MM%/dog", "2024/03/dog"),
        ("%year%-%month%-%day% %hour%%minute%%second%", "2024-03-07 040509"),
        ("%width% %date% 100% of %seed.value% %%", "%width% %date% 100% of %seed.value% %%"),
        ("%date:yyy x%", "yyy x"), ("dog", "dog"),
    ],
)  # fmt: skip
def test_words_for_dates_are_those_of_save_image(name: str, expected: str) -> None:
    assert dated(name, datetime(2024, 3, 7, 4, 5, 9)) == expected


def test_dates_are_in_local_time() -> None:
    moment = datetime(2024, 3, 7, 4, 5, 9, tzinfo=timezone.utc)
    assert dated("%hour%", moment) == moment.astimezone().strftime("%H")


def test_a_file_is_shown_under_the_name_that_a_user_chose() -> None:
    from trainer import toy

    assert shown_name(toy.MODEL) == shown_name(toy.JUDGE) == "toy"
    assert shown_name(toy.PHOTOS / "model.safetensors") == "model.safetensors"


def test_invalid_unicode_is_escaped_in_messages():
    assert printable("caf\udce9.jpg") == "caf\\udce9.jpg"
    assert printable(Path("개 🐶.jpg")) == "개 🐶.jpg"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("dog.jpg", "dog.jpg"),
        ("강아지 2.png", "강아지 2.png"),
        ("../../dog.jpg", "-..-dog.jpg"),
        ("C:\\dog.jpg", "C--dog.jpg"),
        ("/etc/passwd", "-etc-passwd"),
        ('what "is" it?.jpg', "what -is- it-.jpg"),
        (" .dog.jpg. ", "dog.jpg"),
        ("dog .jpg", "dog.jpg"),
        ("NUL.jpg", "_NUL.jpg"),
        ("com1", "_com1"),
        ("a\0b.jpg", "a-b.jpg"),
        ("caf\udce9.jpg", "caf-.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
        ("x" * 300 + ".jpg", "x" * (MAX_BYTES - 4) + ".jpg"),
        ("개" * 300 + ".jpg", "개" * ((MAX_BYTES - 4) // 3) + ".jpg"),
        ("x." + "y" * 300, "x." + "y" * (MAX_BYTES - 2)),
    ],
)
def test_names_are_made_safe(name: str, safe: str) -> None:
    assert made_safe(name) == safe


@pytest.mark.parametrize("name", ["", ".", "..", "/", "???", " . "])
def test_a_name_of_which_nothing_is_left_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be used as a name") as error:
        made_safe(name)
    assert str(error.value) == (
        f"{name!r} cannot be used as a name. Choose a name of letters or digits."
    )


@given(st.text())
@example("con" + " " * 300)
@example("a" * 199 + " .jpg")
@example("nul" + "x" * 196 + " ")
def test_a_name_that_was_made_safe_has_no_fault_and_room(name: str) -> None:
    try:
        safe = made_safe(name)
    except ValueError:
        return
    assert fault(safe) == ""
    assert len(safe.encode()) <= MAX_BYTES
    assert made_safe(safe) == safe


def test_a_name_that_is_taken_gets_a_number() -> None:
    assert numbered("dog.jpg", lambda name: False) == "dog.jpg"
    taken = {"dog.jpg", "dog (1).jpg"}
    assert numbered("dog.jpg", taken.__contains__) == "dog (2).jpg"


def test_long_lists_are_shortened():
    assert shortened(list("abcde")) == "a, b, c, d, e"
    assert shortened(list("abcdefg")) == "a, b, c, d, e, and 2 more"
