"""Names of files: whether they are valid on every operating system, and the words for dates in
them. No file access."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import chain, count
from pathlib import Path

MAX_BYTES = 200
"""Longest base name. File systems allow 255 bytes; the rest is for what is added to it: a counter,
an extension, a temporary suffix."""
MAX_ENDING = 12
"""Longest extension in bytes: what follows the last dot of a longer one is part of the name."""
_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{port}{number}" for port in ("com", "lpt") for number in "0123456789¹²³"
}
"""Names that Windows treats as devices, in every folder and with any extension."""
_FORBIDDEN = set('\\:*?"<>|')
MAX_NAMES = 5
"""How many names a message lists before it only counts the rest."""
FILE_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin")
KNOWN_AS: dict[Path, str] = {}
"""The names of files that users choose by another name than the file's, such as the toy model."""
_DATE_WORDS = {
    "year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S",
}  # fmt: skip
"""The words between % signs that ComfyUI's Save Image replaces, and strftime's codes for them."""
_DATE_PARTS = {"d": "%d", "M": "%m", "h": "%H", "m": "%M", "s": "%S"}
"""The letters in %date:yyyy-MM-dd%, each once (without a leading 0) or twice."""


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


def fault_of_path(name: str) -> str:
    """The same for a name that may begin with subfolders: "dogs/my-dog"."""
    if name and not name.startswith("/") and "" in name.split("/"):
        return "it has nothing before or after a slash"
    return next(filter(None, map(fault, name.split("/"))), "")


def made_safe(name: str) -> str:
    """The name with what `fault` forbids replaced, and at most `MAX_BYTES` long with its extension.
    Raises ValueError if nothing is left of it."""
    text = unicodedata.normalize("NFC", name.encode(errors="replace").decode())
    replaced = "".join(
        "-" if char in _FORBIDDEN | {"/"} or ord(char) < 32 else char for char in text
    )
    plain = replaced.strip(" .")
    if not plain.strip("-. "):
        raise ValueError(f"{name!r} cannot be used as a name. Choose a name of letters or digits.")
    return _shortened(f"_{plain}" if fault(plain) else plain)


def _shortened(name: str) -> str:
    """The name without the end of its stem if it is too long."""
    ending = Path(name).suffix
    if len(ending.encode()) > MAX_ENDING:
        ending = ""
    stem = name.removesuffix(ending).encode()[: MAX_BYTES - len(ending.encode())]
    return stem.decode(errors="ignore").rstrip(" .") + ending


def numbered(name: str, is_taken: Callable[[str], bool]) -> str:
    """The name, or the first of "photo (1).jpg", "photo (2).jpg" ... that is not taken."""
    path = Path(name)
    others = (f"{path.stem} ({number}){path.suffix}" for number in count(1))
    return next(each for each in chain([name], others) if not is_taken(each))


def without_ending(name: str) -> str:
    """The name without the ending of a checkpoint or embedding, if it has one."""
    while name.lower().endswith(FILE_ENDINGS):
        name = name[: name.rindex(".")]
    return name


def dated(name: str, moment: datetime) -> str:
    """The name with words such as %year% and %date:yyyy-MM-dd% replaced, in local time, as ComfyUI
    does in names of images. Other words stay."""
    local = moment.astimezone()

    def replace(word: re.Match[str]) -> str:
        if word[1] in _DATE_WORDS:
            return local.strftime(_DATE_WORDS[word[1]])
        kind, colon, form = word[1].partition(":")
        if kind != "date" or not colon:
            return word[0]
        return re.sub("yyy?y?|dd?|MM?|hh?|mm?|ss?", lambda part: _date_part(part[0], local), form)

    return re.sub("%([^%]+)%", replace, name)


def _date_part(part: str, moment: datetime) -> str:
    if part.startswith("y"):
        return {"yyyy": f"{moment:%Y}", "yy": f"{moment:%y}"}.get(part, part)
    digits = moment.strftime(_DATE_PARTS[part[0]])
    return digits if len(part) == 2 else str(int(digits))


def shown_name(path: Path) -> str:
    """The name under which a user knows a file, for messages and titles."""
    return KNOWN_AS.get(path, path.name)


def printable(name: str | Path) -> str:
    """A name for messages, with what is not valid Unicode as escapes: logs are written in UTF-8."""
    return str(name).encode(errors="backslashreplace").decode()


def shortened(names: Sequence[str]) -> str:
    """The names separated by commas: the first `MAX_NAMES`, then the number of the others."""
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*map(printable, names[:MAX_NAMES]), *more])


def is_text(name: str) -> bool:
    """Whether a name is valid Unicode. Linux allows any bytes as a file name; Python represents
    invalid ones as surrogates, which cannot be encoded as UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
