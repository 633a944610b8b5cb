"""Class images: what the base model draws for the class prompt, made once and kept in a folder.
Only images of the very same model, prompt and settings are used again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..observer import Observer
from ..settings.config import PriorConfig
from ..storage import json_files
from ..storage.versions import versions
from .sampler import sample_each

if TYPE_CHECKING:
    from ..families.base import ModelFamily

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
PATIENCE = 8
"""By how many the discarded images may outnumber the good ones before the model is given up."""
FLAT = 2
"""Difference, of 255 levels, up to which all pixels of an image count as one colour."""


def make_class_images(
    model: ModelFamily, prior: PriorConfig, folder: Path, *, resolution: int,
    observer: Observer | None = None,
) -> list[Path]:  # fmt: skip
    """`prior.num_images` PNG files, `resolution` pixels wide and high, in a folder below `folder`
    that belongs to this request; only the missing ones are made.

    They are the first good ones of seed `prior.sampling.seed` and up, so that stopping and calling
    again gives what one call gives, and asking for more adds to them. The batch size may be changed
    in between, which changes images by rounding.
    """
    if not prior.prompt.strip():
        raise ValueError("prior.prompt is empty. Name the class, such as 'a photo of a dog'.")
    album = _Album(folder, _definition(model, prior, resolution))
    found = album.find()
    report = _Report(observer or Observer(), len(found), prior.num_images)
    report.announce()
    discarded: set[int] = set()
    while len(found) < prior.num_images:
        seeds = (s for s in count(prior.sampling.seed) if s not in found and s not in discarded)
        missing = list(islice(seeds, prior.num_images - len(found)))
        requests = [(prior.prompt, seed) for seed in missing]
        images = sample_each(
            model, requests, prior.sampling, size=(resolution, resolution), observer=report
        )
        for seed, image in zip(missing, images, strict=True):
            if is_flat(image):
                discarded.add(seed)
                _discard(seed, len(discarded), good=len(found))
            else:
                found[seed] = album.add(seed, image)
                report.done = len(found)
                report.announce()
    return [found[seed] for seed in sorted(found)][: prior.num_images]


def is_flat(image: np.ndarray) -> bool:
    """Whether an image [H, W, 3] uint8 is black or of one colour."""
    colors = image.reshape(-1, image.shape[-1]).astype(int)
    return bool((colors.max(axis=0) - colors.min(axis=0)).max() <= FLAT)


def _discard(seed: int, num_discarded: int, *, good: int) -> None:
    logger.warning(
        "The class image of seed %d came out black or in one colour and is discarded (%d so far); "
        "another seed takes its place.", seed, num_discarded,
    )  # fmt: skip
    if num_discarded - good >= PATIENCE:
        raise ValueError(
            f"{num_discarded} of {num_discarded + good} class images came out black or in one "
            "colour, so this model cannot draw the class as it is used here. Choose fp32 "
            "precision, another base checkpoint, or a folder of your own images (prior.images)."
        )


def _definition(model: ModelFamily, prior: PriorConfig, resolution: int) -> dict[str, Any]:
    """What class images depend on, beside each one's own seed."""
    settings = dataclasses.asdict(prior.sampling)
    del settings["batch_size"]
    settings["first_seed"] = settings.pop("seed")
    # 7 and 7.0 are the same setting, but not the same text.
    settings["guidance_scale"] = float(settings["guidance_scale"])
    size = {"width": resolution, "height": resolution}
    return {"base_sha256": model.source.sha256(), "prompt": prior.prompt, **settings, **size}


class _Report(Observer):
    """Hears the sampling's steps and passes them on as so many class images done, so that a run can
    be stopped at each of them."""

    def __init__(self, observer: Observer, done: int, total: int) -> None:
        self.observer, self.done, self.total = observer, done, total

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self.announce()

    def announce(self) -> None:
        self.observer.on_progress("Class images", min(self.done, self.total), self.total)


@dataclass(frozen=True, slots=True)
class _Album:
    """The folder of one definition's images: a PNG per seed, and a manifest with a line for each
    that is complete."""

    parent: Path
    definition: dict[str, Any]

    @property
    def folder(self) -> Path:
        text = json.dumps(self.definition, sort_keys=True)
        return self.parent / hashlib.sha256(text.encode()).hexdigest()[:16]

    def find(self) -> dict[int, Path]:
        """By seed, the images that the manifest knows; a warning names every other PNG."""
        seeds = dict(self._entries())
        found = {}
        for path in sorted(self.folder.glob("[!.]*.png")):
            fault = self._fault(path) if path.name in seeds else f"is not listed in {MANIFEST}"
            if fault:
                logger.warning("The class image %s %s. It is not used.", path, fault)
            else:
                found[seeds[path.name]] = path
        return found

    def add(self, seed: int, image: np.ndarray) -> Path:
        """The image's file, complete on disk before the manifest says so."""
        path = self.folder / f"{seed:06d}.png"
        with json_files.atomic_write(path) as file:
            Image.fromarray(image).save(file, format="PNG")
        self._list({"file": path.name, "seed": seed, **self.definition, "versions": versions()})
        return path

    def _list(self, entry: dict[str, Any]) -> None:
        with (self.folder / MANIFEST).open("a+b") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - 1, 0))
            torn = file.read() not in (b"", b"\n")
            line = json.dumps(entry, ensure_ascii=False) + "\n"
            file.write(b"\n" * torn + line.encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())

    def _entries(self) -> Iterator[tuple[str, int]]:
        """File name and seed of each image listed for this definition."""
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            return
        for line in manifest.read_text("utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                listed = str(entry["file"]), int(entry["seed"])
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                continue  # Half a line, as an interruption leaves it: its image is made again.
            if self.definition.items() <= entry.items():
                yield listed

    def _fault(self, path: Path) -> str:
        """What is wrong with an image's file; "" if nothing."""
        wanted = (self.definition["width"], self.definition["height"])
        try:
            with Image.open(path, formats=("PNG",)) as image:
                size = image.size
        # Damaged and hostile files raise all sorts of exceptions.
        except Exception:
            return "cannot be read"
        return "" if size == wanted else "is {}x{} pixels, not {}x{}".format(*size, *wanted)
