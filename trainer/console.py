"""What is written to a console. Names, captions and metadata may contain anything; what a console
cannot show, or would obey, is written as escapes such as \\x1b."""

from __future__ import annotations

import io
import logging
import os
import re
import sys

MAX_SHOWN = 300
"""Characters of a caption or prompt in a message."""
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters except tab and line break, and those that reverse the text after them."""


def plain(text: str) -> str:
    """The text with control characters as escapes: a terminal would obey them."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def beginning(text: str) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


class PlainFormatter(logging.Formatter):
    """Formats messages as `plain` does."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def open_closed() -> None:
    """Open stdin, stdout and stderr to nothing if they are closed. Files that are opened later
    would take their places, and receive what is written to them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            nothing = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
            setattr(sys, name, nothing)


def accept_all_characters() -> None:
    """From now on, what the encodings of stdout and stderr lack is written as escapes. Otherwise it
    raises UnicodeEncodeError: a Korean name does where Windows writes a console into a file."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="backslashreplace")


class PlainRecords(logging.Handler):
    """Makes the messages of a logger and of those below it plain for the handlers above it."""

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args = plain(record.getMessage()), ()
