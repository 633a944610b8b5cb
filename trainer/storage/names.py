"""Check that a file name is valid on every operating system, from the name alone."""

from __future__ import annotations

MAX_BYTES = 200
"""Longest base name. File systems allow 255 bytes; the rest is for what is added to it: a counter,
an extension, a temporary suffix."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}
"""Names that Windows treats as devices, in every folder and with any extension."""
_FORBIDDEN = set('\\:*?"<>|')


def fault(name: str) -> str:
    """Return why a file or folder cannot have this name on every system, or "" if it can."""
    if name in ("", ".", "..") or "/" in name:
        return "it leads out of its folder"
    if name != name.strip(" .") or _FORBIDDEN & set(name) or any(ord(char) < 32 for char in name):
        return (
            'names cannot contain \\ : * ? " < > | or control characters, or begin or end with a '
            "space or a dot"
        )
    if name.split(".")[0].strip().lower() in _DEVICES:
        return "Windows reserves it for a device"
    if not is_text(name):
        return "it is not valid Unicode"
    return ""


def is_text(name: str) -> bool:
    """Whether a name is valid Unicode. Linux allows any bytes as a file name; Python represents
    invalid ones as surrogates, which cannot be encoded as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
