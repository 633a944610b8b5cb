"""Reads the user's copy of the paper's dataset (github.com/google/dreambooth): subjects, their
classes and photos, and the prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.data.formats import IMAGE_ENDINGS

PROMPT_FILE = "prompts_and_classes.txt"
LIVE_CLASSES = ("cat", "dog")
"""Classes with the prompts for live subjects."""
ENTRY = re.compile(r"\s*([\w-]+)\s*,\s*([\w -]+?)\s*")
HEADING = re.compile(r"\s*(classes|prompts|object prompts|live subject prompts)\s*:?\s*", re.I)
QUOTED = re.compile(r"""(["'])(.*?)\1\s*\.format""")


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One of the subjects to be learned."""

    name: str
    class_name: str
    photos: tuple[Path, ...]
    prompts: tuple[str, ...]
    """All prompts for this kind of subject, with {0} for the identifier and {1} for the class."""

    @property
    def class_prompt(self) -> str:
        return f"a {self.class_name}"

    def instance_prompt(self, identifier: str) -> str:
        return f"a {identifier} {self.class_name}"

    def prompt(self, index: int, identifier: str = "") -> str:
        """One of the prompts. Without an identifier, it only names the class."""
        words = self.prompts[index].replace("{0}", identifier).replace("{1}", self.class_name)
        return " ".join(words.split())


@dataclass(frozen=True, kw_only=True)
class Lists:
    """The contents of the prompt file."""

    classes: dict[str, str]
    """By subject."""
    object_prompts: tuple[str, ...]
    live_prompts: tuple[str, ...]

    def prompts(self, class_name: str) -> tuple[str, ...]:
        return self.live_prompts if class_name in LIVE_CLASSES else self.object_prompts


def read_subjects(folder: Path) -> list[Subject]:
    """The subjects that have photos in the folder, or in `dataset` below it, in the file's order.

    Raises FileNotFoundError if there is no prompt file, and ValueError if it cannot be parsed or if
    the folder has no photos of any subject."""
    top = next((f for f in (folder, folder / "dataset") if (f / PROMPT_FILE).is_file()), None)
    if top is None:
        raise FileNotFoundError(
            f"There is no {PROMPT_FILE} in {folder}. Name the folder of the DreamBooth paper's "
            "dataset, which has this file beside the subjects' folders or above them."
        )
    lists = read_lists(top / PROMPT_FILE)
    subjects = []
    for name, class_name in lists.classes.items():
        photos = _photos(top / name) or _photos(top / "dataset" / name)
        if photos:
            prompts = lists.prompts(class_name)
            subjects.append(
                Subject(name=name, class_name=class_name, photos=photos, prompts=prompts)
            )
    if not subjects:
        raise ValueError(
            f"{top} has no photos of the {len(lists.classes)} subjects in {PROMPT_FILE}. Put the "
            f"folders of the dataset there, such as {next(iter(lists.classes))}."
        )
    return subjects


def read_lists(path: Path) -> Lists:
    """The classes and prompts of the prompt file: headings, lines of `subject,class`, and quoted
    prompts in Python's format notation."""
    section, classes = "", {}
    prompts: dict[str, list[str]] = {"object prompts": [], "live subject prompts": []}
    for number, line in enumerate(_lines(path), start=1):
        if heading := HEADING.fullmatch(line):
            section = heading[1].lower()
        elif section == "classes" and (entry := ENTRY.fullmatch(line)):
            classes[entry[1]] = entry[2].lower()
        elif section in prompts:
            quoted = [text for _, text in QUOTED.findall(line)]
            for text in quoted:
                _require_places(text, path, number)
            prompts[section] += quoted
    classes.pop("subject_name", None)  # the table's header
    for what, found in {"classes": classes, **prompts}.items():
        if not found:
            raise ValueError(
                f"'{path}' has no {what} under a heading of that name. Use the dataset's original "
                "file."
            )
    return Lists(
        classes=classes,
        object_prompts=tuple(prompts["object prompts"]),
        live_prompts=tuple(prompts["live subject prompts"]),
    )


def choose(subjects: Sequence[Subject], names: Sequence[str]) -> list[Subject]:
    """The subjects with these names; all if there are no names. Raises ValueError for an unknown
    name."""
    known = {subject.name: subject for subject in subjects}
    for name in names:
        if name not in known:
            raise ValueError(f"--subjects must be among {', '.join(known)}, got {name!r}.")
    return [known[name] for name in dict.fromkeys(names or known)]


def choose_prompts(ranges: Sequence[str], subjects: Sequence[Subject]) -> list[int]:
    """Indices into the subjects' lists of prompts, from numbers and ranges counted from 1, such as
    "3" and "1-5". All prompts if there are none."""
    most = min(len(subject.prompts) for subject in subjects)
    chosen = set() if ranges else set(range(most))
    for text in ranges:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= first <= last <= most:
            raise ValueError(
                f"--prompts must be numbers from 1 to {most} or ranges, such as 3 or 1-5, "
                f"got {text!r}."
            )
        chosen.update(range(first - 1, last))
    return sorted(chosen)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"'{path}' is not UTF-8 text. Save it as UTF-8.") from None


def _require_places(prompt: str, path: Path, number: int) -> None:
    if "{0}" not in prompt or "{1}" not in prompt:
        raise ValueError(
            f"The prompt {prompt!r} in line {number} of '{path}' lacks {{0}} for the identifier or "
            "{1} for the class. Use the dataset's original file."
        )


def _photos(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        return ()
    files = sorted(folder.iterdir())
    return tuple(
        f for f in files if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith(".")
    )
