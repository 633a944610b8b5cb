"""Which names a file can have on every system, told from the name alone."""

from __future__ import annotations

MAX_BYTES = 200
"""Of a name that gets an ending, a counter and more while it is written: file systems take 255."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}
"""Names that Windows takes for devices, in every folder and with every ending."""
_FORBIDDEN = set('\\:*?"<>|')


def fault(name: str) -> str:
    """Why a file or folder cannot have this name everywhere, or is another than it seems to be; ""
    if it can."""
    if name in ("", ".", "..") or "/" in name:
        return "it leads out of its folder"
    if name != name.strip(" .") or _FORBIDDEN & set(name) or any(ord(char) < 32 for char in name):
        return 'names have none of \\ : * ? " < > | and no space or dot at their ends'
    if name.split(".")[0].strip().lower() in _DEVICES:
        return "Windows reserves it for a device"
    if not is_text(name):
        return "it is not valid Unicode"
    return ""


def is_text(name: str) -> bool:
    """Whether it is text at all: Linux allows names that are only bytes, and Python stands them in
    by what cannot be written as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
