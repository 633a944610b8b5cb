"""The settings of the photos."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from .checks import at_least, is_number_of_images, is_text, one_of, require
from .effects import ByContent, Decides

Crop = Literal["center", "random"]
Masks = Literal["auto", "alpha", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """The photos of the subject, and how they are cropped and resized."""

    photos: ByContent[tuple[Path, ...]]
    """A folder of photos, or the photo files themselves: BMP, GIF, JPEG, PNG, TIFF or WebP; with a
    new Pillow also AVIF, with pillow-heif also HEIC. The content decides, not the extension."""
    prompt: Decides[str]
    """What the photos show: the class with a rare word before it, such as "a photo of sks dog";
    words that describe the subject work too. Prompts with these words draw the subject later; with
    "a photo of a dog" alone, every dog would become yours. With textual inversion it must contain
    the placeholder, such as "a photo of <my-dog>". A text file beside a photo
    (photo.txt or photo.caption for photo.jpg) replaces the prompt for that photo."""
    resolution: Decides[int | None] = None
    """Shorter side of a training image in pixels, a multiple of 8, or of 64 with buckets. Lower
    values save memory, but below half of the model's own size the model forgets how to draw well;
    higher values need more memory and larger photos. Not set: the model's own size: 512 for Stable
    Diffusion 1, 1024 for XL."""
    crop: Decides[Crop] = "center"
    """The part of a photo that is used if it is not square: "center", or "random" for a place
    chosen once per photo, which may cut off a subject in the middle."""
    buckets: Decides[bool] = False
    """Keep each photo's aspect ratio, in steps of 64 pixels at about the same area, instead of
    cropping it to a square. For tall or wide photos of which nothing may be cut off. Photos beyond
    2:1 are still cropped, and each shape is computed separately, which is slower."""
    mirror: Decides[bool] = False
    """Also train on the mirror image of each photo. For symmetric things and very few photos; wrong
    for faces, lettering and anything one-sided."""
    background: Decides[str] = "white"
    """Colour behind transparent pixels: a name such as "white", or "#rrggbb". Photos without
    transparency are not affected."""
    allow_upscaling: Decides[bool] = False
    """Enlarge photos that are smaller than the resolution instead of refusing them. They look soft,
    and the model learns to draw softly."""
    masks: ByContent[Masks] = "auto"
    """Which masks say where the subject is, in white. "auto": image files beside the photos, such
    as photo-mask.png, photo-masklabel.png or photo.mask.png for photo.jpg; "alpha": for photos
    without such a file their transparency, too; "off": none. Photos without a mask are trained
    whole."""
    unmasked_weight: Decides[float] = 0.1
    """How much a place outside a photo's mask counts compared with one inside: 0 not at all, 1
    the same, as if there were no mask. 0.1 learns little of the surroundings, and keeps what the
    model draws there from falling apart. Photos without a mask are not affected."""
    random_backgrounds: Decides[int] = 0
    """Put the subject of each photo that has a mask on this many plain colours, and train on one of
    them at random each time: 8, or 0 for the photo as it is. For photos that all show the same
    surroundings. Each colour is encoded once, before the first step."""

    def __post_init__(self) -> None:
        require(len(self.photos) > 0, "dataset.photos is empty. Name a folder of photos.")
        require(self.prompt.strip() != "", "dataset.prompt is empty. Describe the photos, such as "
                "'a photo of sks dog'.")  # fmt: skip
        is_text("dataset.prompt", self.prompt)
        if self.resolution is not None:
            at_least("dataset.resolution", self.resolution, 8)
            require(self.resolution % 8 == 0, f"dataset.resolution must be a multiple of 8, "
                    f"got {self.resolution}.")  # fmt: skip
        one_of("dataset.crop", self.crop, get_args(Crop))
        one_of("dataset.masks", self.masks, get_args(Masks))
        require(0 <= self.unmasked_weight <= 1, "dataset.unmasked_weight must be between 0 and 1, "
                f"got {self.unmasked_weight}.")  # fmt: skip
        is_number_of_images("dataset.random_backgrounds", self.random_backgrounds, 0)
        require(self.masks != "off" or self.random_backgrounds == 0, "dataset.random_backgrounds "
                f"is {self.random_backgrounds}, but dataset.masks is off. Set it to auto or alpha, "
                "or use no random backgrounds.")  # fmt: skip
