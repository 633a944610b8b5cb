"""The command `python -m trainer inspect`."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from ..data.buckets import bucket_step
from ..data.examples import Example, find_examples
from ..data.images import read_with_alpha
from ..data.inspection import Inspection
from ..data.training_images import Layout
from ..evaluation.contact_sheet import contact_sheet
from ..observer import Observer
from ..settings.config import Crop, DatasetConfig, Masks
from ..storage.png_files import save_png
from .commands import new_names
from .terminal import TerminalObserver

NOTHING = "Nothing that could be better was found."


@dataclass(frozen=True, kw_only=True)
class Inspect:
    """Look at photos before a run: say what can be better about them, and write a contact sheet of
    the crops that would be trained, with their masks. Nothing is trained or changed."""

    photos: tyro.conf.Positional[tuple[Path, ...]]
    """A folder of photos, or the photos themselves."""
    prompt: str = ""
    """The prompt of the run, to find captions without its words. Empty: not compared."""
    resolution: int = 512
    """The resolution of the run in pixels: 512 for Stable Diffusion 1, 1024 for XL."""
    crop: Crop = "center"
    """The part that is used of photos that are not square."""
    buckets: bool = False
    """Keep each photo's aspect ratio."""
    masks: Masks = "auto"
    """Which masks are used: files beside the photos (auto), also transparency (alpha), or none
    (off)."""
    random_backgrounds: int = 0
    """Plain colours on which the subjects are put; the sheet shows the first."""
    seed: int = 0
    """The seed of the run, which decides random crops and colours."""
    folder: Path = Path("out")
    """Output folder of the contact sheet. Existing files are not overwritten."""

    def run(self) -> None:
        dataset = DatasetConfig(
            photos=self.photos,
            prompt=self.prompt or "-",
            resolution=self.resolution,
            crop=self.crop,
            buckets=self.buckets,
            masks=self.masks,
            random_backgrounds=self.random_backgrounds,
            allow_upscaling=True,
        )
        found = find_examples(self.photos, self.prompt, uses_masks=self.masks != "off")
        layout = Layout(self.resolution, bucket_step(self.resolution), latent_factor=1)
        inspection = Inspection(dataset, layout, seed=self.seed)
        with TerminalObserver() as observer:
            faults = _add_all(inspection, found, observer)
        for line in [*faults, *inspection.advice()] or [NOTHING]:
            logging.info("%s", line)
        if inspection.images:
            self.folder.mkdir(parents=True, exist_ok=True)
            (path,) = new_names(self.folder, "contact sheet.png")
            save_png(path, contact_sheet(inspection.images))
            logging.info("Wrote %s", path)


def _add_all(inspection: Inspection, photos: list[Example], observer: Observer) -> list[str]:
    """Return why a run would refuse some of the photos."""
    faults = []
    for done, photo in enumerate(photos, start=1):
        try:
            inspection.add(photo, read_with_alpha(photo.path))
        except (ValueError, OSError) as error:
            faults.append(str(error))
        observer.on_progress("Reading", done, len(photos))
    return faults
