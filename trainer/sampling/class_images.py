"""Class images: images that the base model draws for the class prompt. They are made once, kept in
a folder, and reused only for the same model, prompt and settings."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..families.clip_skip import LAST_LAYER
from ..observer import Observer
from ..processes import ALONE, Processes
from ..settings.config import PriorConfig
from ..storage.disk_errors import naming
from ..storage.flush import flush_folder
from ..storage.listing import matching
from ..storage.png_files import save_png
from ..storage.versions import versions
from .sampler import sample_each

if TYPE_CHECKING:
    from ..families.base import ModelFamily

logger = logging.getLogger(__name__)

MANIFEST = "manifest.jsonl"
PATIENCE = 8
"""How many more images may be discarded than kept before the model is rejected."""
FLAT = 2
"""An image whose pixels differ by no more than this, of 255 levels per channel, counts as one
colour."""


def make_class_images(
    model: ModelFamily, prior: PriorConfig, folder: Path, *, resolution: int,
    observer: Observer | None = None, processes: Processes = ALONE,
) -> list[Path]:  # fmt: skip
    """Return `prior.num_images` PNG files, `resolution` pixels wide and high, in a subfolder of
    `folder` for this model, prompt and settings. Only missing images are generated.

    The seeds count up from `prior.sampling.seed` and skip flat images. So an interrupted call that
    is repeated returns the same images as one call, and asking for more images adds to them. A
    different batch size in between changes images only by rounding. Each of the processes draws a
    share of them.

    Raises ValueError without a class prompt, and if the model draws mostly flat images.
    """
    if not prior.prompt.strip():
        raise ValueError("prior.prompt is empty. Name the class, such as 'a photo of a dog'.")
    album = _Album(folder, _definition(model, prior, resolution))
    found = album.find()
    progress = _Progress(observer or Observer(), found, prior.num_images)
    progress.report()
    discarded: set[int] = set()
    while len(found) < prior.num_images:
        seeds = (s for s in count(prior.sampling.seed) if s not in found and s not in discarded)
        num_missing = prior.num_images - len(found)
        if processes.size > 1:  # what the others have drawn comes at the end of a round
            num_missing = min(num_missing, processes.size * prior.sampling.batch_size)
        missing = list(islice(seeds, num_missing))
        progress.begin(len(missing))
        processes.call("draw_class_images", missing, prior, resolution)
        images = draw_share(model, missing, prior, resolution, progress, processes)
        for seed, image in zip(missing, images, strict=True):
            if is_flat(image):
                discarded.add(seed)
                _discard(seed, len(discarded), good=len(found))
            else:
                found[seed] = album.add(seed, image)
                progress.report()
    return [found[seed] for seed in sorted(found)][: prior.num_images]


def draw_share(
    model: ModelFamily, seeds: Sequence[int], prior: PriorConfig, resolution: int,
    observer: Observer, processes: Processes,
) -> Iterable[np.ndarray]:  # fmt: skip
    """Draw this process's share of the class images with these seeds. In the leader the result is
    all of them [H, W, 3] uint8, in the order of the seeds."""
    requests = [(prior.prompt, seed) for seed in processes.share_of(seeds)]
    size = (resolution, resolution)
    images = sample_each(model, requests, prior.sampling, size=size, observer=observer)
    return processes.gather(images if requests else ())


def warn_of_other_clip_skip(model: ModelFamily, images: Iterable[Path]) -> None:
    """Warn if class images that this trainer drew were drawn with another clip skip than the
    model's."""
    for folder in sorted({image.parent for image in images}):
        lines = [line for line in _lines(folder / MANIFEST) if "base_sha256" in line]
        others = {line.get("clip_skip", LAST_LAYER) for line in lines} - {model.clip_skip}
        if others:
            logger.warning(
                "The class images in %s were drawn with clip skip %s, but clip skip %d is trained. "
                "Use the same clip_skip for both.", folder, min(others), model.clip_skip,
            )  # fmt: skip


def is_flat(image: np.ndarray) -> bool:
    """Whether an image [H, W, 3] uint8 has a single colour, such as black."""
    colors = image.reshape(-1, image.shape[-1]).astype(int)
    return bool((colors.max(axis=0) - colors.min(axis=0)).max() <= FLAT)


def _discard(seed: int, num_discarded: int, *, good: int) -> None:
    logger.warning(
        "The class image of seed %d came out black or in one colour and was discarded (%d so far). "
        "The next seed replaces it.", seed, num_discarded,
    )  # fmt: skip
    if num_discarded - good >= PATIENCE:
        raise ValueError(
            f"{num_discarded} of {num_discarded + good} class images came out black or in one "
            "colour, so this model cannot draw the class with these settings. Choose fp32 "
            "precision, another base checkpoint, or a folder of your own images (prior.images)."
        )


def _definition(model: ModelFamily, prior: PriorConfig, resolution: int) -> dict[str, Any]:
    """Everything that determines the class images, except each one's seed."""
    settings = dataclasses.asdict(prior.sampling)
    del settings["batch_size"]
    settings["first_seed"] = settings.pop("seed")
    # 7 and 7.0 are the same setting, but different JSON.
    settings["guidance_scale"] = float(settings["guidance_scale"])
    if model.clip_skip != LAST_LAYER:  # older class images have no clip_skip
        settings["clip_skip"] = model.clip_skip
    size = {"width": resolution, "height": resolution}
    base = {"base_sha256": model.source.sha256(), **model.source.overrides}
    return {**base, "prompt": prior.prompt, **settings, **size}


class _Progress(Observer):
    """Turns each sampling step into a report of how many class images are done, so that a run can
    be stopped at every sampling step."""

    def __init__(self, observer: Observer, found: Mapping[int, Path], total: int) -> None:
        self.observer, self.found, self.total = observer, found, total
        self.begin(total - len(found))

    def begin(self, num_images: int) -> None:
        """So many images are drawn next."""
        self._start, self._num_images, self._share = len(self.found), num_images, 0.0

    def on_progress(self, activity: str, done: int, total: int) -> None:
        self._share = done / total
        self.report()

    def report(self) -> None:
        done = min(len(self.found), self.total)
        drawn = (self._start + self._num_images * self._share) / self.total
        files = [self.found[seed] for seed in sorted(self.found)][: self.total]
        self.observer.on_class_images(files, self.total, min(1.0, max(drawn, done / self.total)))
        self.observer.on_progress("Class images", done, self.total)


@dataclass(frozen=True, slots=True)
class _Album:
    """The folder for one definition: a PNG file per seed, and a manifest with one line per complete
    image."""

    parent: Path
    definition: dict[str, Any]

    @property
    def folder(self) -> Path:
        text = json.dumps(self.definition, sort_keys=True)
        return self.parent / hashlib.sha256(text.encode()).hexdigest()[:16]

    def find(self) -> dict[int, Path]:
        """The intact images listed in the manifest, by seed. Warns of every other PNG file."""
        seeds = dict(self._entries())
        found = {}
        for path in matching(self.folder, "[!.]*.png"):
            fault = self._fault(path) if path.name in seeds else f"is not listed in {MANIFEST}"
            if fault:
                logger.warning("The class image %s %s. It is not used.", path, fault)
            else:
                found[seeds[path.name]] = path
        return found

    def add(self, seed: int, image: np.ndarray) -> Path:
        """Save an image and return its file. The manifest lists it once it is complete on disk."""
        path = self.folder / f"{seed:06d}.png"
        save_png(path, Image.fromarray(image))
        self._append({"file": path.name, "seed": seed, **self.definition, "versions": versions()})
        return path

    def _append(self, entry: dict[str, Any]) -> None:
        """Add a line to the manifest, in place of the last one if an interruption has left it
        incomplete."""
        path = self.folder / MANIFEST
        if path.is_symlink():
            path.unlink()  # what is added to it would be written elsewhere
        with naming(path), path.open("a+b") as file:
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]
            if not _parsed(last.decode(errors="replace")):
                file.truncate(file.tell() - len(last))
                last = b""
            line = json.dumps(entry, ensure_ascii=False) + "\n"
            file.write(b"\n" * bool(last) + line.encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        flush_folder(self.folder)  # the manifest may be new

    def _entries(self) -> Iterator[tuple[str, int]]:
        """File name and seed of each image that the manifest lists for this definition."""
        for entry in _lines(self.folder / MANIFEST):
            try:
                listed = str(entry["file"]), int(entry["seed"])
            except (ValueError, TypeError, KeyError, OverflowError):
                continue
            if self.definition.items() <= entry.items():
                yield listed

    def _fault(self, path: Path) -> str:
        """What is wrong with an image's file; "" if nothing."""
        expected = (self.definition["width"], self.definition["height"])
        try:
            with Image.open(path, formats=("PNG",)) as image:
                size = image.size
        except Exception:  # damaged and malicious files raise all sorts
            return "cannot be read"
        return "" if size == expected else "is {}x{} pixels, not {}x{}".format(*size, *expected)


def _lines(manifest: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a manifest. Images of others are made again."""
    if not manifest.is_file():
        return
    with naming(manifest):
        text = manifest.read_text("utf-8", errors="replace")
    yield from filter(None, map(_parsed, text.split("\n")))


def _parsed(line: str) -> dict[str, Any]:
    """{} if the line is incomplete or damaged."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
