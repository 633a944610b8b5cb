"""What is written to a console: no control characters, and escapes for what its encoding lacks."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.console import MAX_SHOWN, PlainFormatter, PlainRecords, beginning, plain

ROOT = Path(__file__).parents[2]
EVIL = "\x1b]0;evil\x07\x1b[2J\r\u202egnp.exe"
SHOWN = "\\x1b]0;evil\\x07\\x1b[2J\\r\\u202egnp.exe"
SAY = """
import logging, os, sys
from trainer.__main__ import main
os.open(os.devnull, os.O_RDONLY)
main(["runs", "\uac15\x1b[31m"])
print("\uac15")
os.write(2, b"an end")
"""


def test_control_characters_are_shown_as_escapes():
    assert plain(EVIL) == SHOWN
    assert plain("two\nlines,\ta tab, 강아지 é") == "two\nlines,\ta tab, 강아지 é"


def test_messages_are_plain_with_the_formatter_and_above_the_handler():
    record = logging.LogRecord("a", logging.INFO, "", 0, "Photo %s", (EVIL,), None)
    assert PlainFormatter().format(record) == f"Photo {SHOWN}"
    PlainRecords().emit(record)
    assert record.getMessage() == f"Photo {SHOWN}"


def test_only_the_beginning_of_a_long_text_is_shown():
    assert beginning("a" * MAX_SHOWN) == "a" * MAX_SHOWN
    assert beginning("a" * (MAX_SHOWN + 1)) == "a" * MAX_SHOWN + "…"


def say(**options) -> subprocess.CompletedProcess:
    encoding = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", SAY], env=encoding, cwd=ROOT, **options)


def test_a_console_that_lacks_a_letter_gets_an_escape():
    done = say(capture_output=True)
    assert done.returncode == 0
    assert done.stdout.split() == [b"\\uac15"]
    assert done.stderr.startswith(b"The folder '\\uac15\\x1b[31m' does not exist.")


@pytest.mark.posix
def test_closed_streams_do_not_become_files(tmp_path):
    """A file opened later would otherwise be stderr, and get its messages."""
    taken = tmp_path / "taken"
    code = SAY.replace('print("', f'open({str(taken)!r}, "w"); print("')
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0
    assert taken.read_bytes() == b""


def test_streams_that_are_not_files_are_left_alone(monkeypatch):
    from trainer.console import accept_all_characters

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", None)
    accept_all_characters()
    assert isinstance(sys.stdout, io.StringIO)
