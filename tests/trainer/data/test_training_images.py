"""That masks lie over their subjects in what is trained, whatever was done to the photo."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.test_images import save_stored
from trainer.data.examples import Example
from trainer.data.training_images import Layout, TrainingImage, read_training_image
from trainer.settings.config import DatasetConfig

PIXELS = Layout(resolution=64, bucket_step=8, latent_factor=1)
LATENTS = replace(PIXELS, latent_factor=8)
SUBJECT = (30, 50, 90, 140)
"""Left, top, right and bottom of a red rectangle in a blue photo of 150 x 200 pixels."""


def photo(size: tuple[int, int] = (150, 200)) -> Image.Image:
    image = Image.new("RGB", size, "blue")
    image.paste("red", SUBJECT)
    return image


def mask(size: tuple[int, int] = (150, 200)) -> Image.Image:
    image = Image.new("L", size)
    image.paste(255, SUBJECT)
    return image


def read(folder: Path, layout: Layout = PIXELS, *, mirrored: bool = False, seed: int = 0,
         **changes: object) -> TrainingImage:  # fmt: skip
    (path,) = folder.glob("photo.*")
    beside = next(folder.glob("photo-mask.*"), None)
    dataset = DatasetConfig(photos=(folder,), prompt="a dog", **changes)
    return read_training_image(
        Example(path, ("a dog",), mirrored=mirrored, mask=beside), dataset, layout, seed=seed
    )


def redness(found: TrainingImage) -> np.ndarray:
    """[h, w] from 0 to 1, mirrored if the example is."""
    (image,) = found.versions
    levels = np.asarray(image, float)[..., 0] / 255
    return levels[:, ::-1] if found.placement.is_mirrored else levels


def require_over_subject(found: TrainingImage, *, blur: int = 1) -> None:
    """The share of the mask equals that of red, but for the edge, which is smoothed."""
    red, difference = redness(found), np.abs(redness(found) - found.shares)
    grown = [np.roll(red, (y, x), (0, 1)) for y in range(-blur - 1, blur + 2)
             for x in range(-blur - 1, blur + 2)]  # fmt: skip
    inside = np.ptp(grown, axis=0) < 0.3
    assert inside.mean() > 0.5
    assert 0.05 < red.mean() < 0.9
    assert difference[inside].max() < 0.15
    assert difference.mean() < 0.03


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("crop", ["center", "random"])
@pytest.mark.parametrize("buckets", [False, True])
def test_a_mask_is_cropped_and_mirrored_with_its_photo(tmp_path, mirrored, seed, crop, buckets):
    photo().save(tmp_path / "photo.png")
    mask().save(tmp_path / "photo-mask.png")
    found = read(tmp_path, mirrored=mirrored, seed=seed, crop=crop, buckets=buckets)
    assert found.placement.framing.size == ((56, 72) if buckets else (64, 64))
    require_over_subject(found)


@pytest.mark.parametrize("factor", [0.5, 0.333, 2])
def test_a_mask_may_be_smaller_or_larger_than_its_photo(tmp_path, factor):
    photo().save(tmp_path / "photo.png")
    size = (round(150 * factor), round(200 * factor))
    mask().resize(size, Image.Resampling.BOX).save(tmp_path / "photo-mask.png")
    require_over_subject(read(tmp_path, crop="random", seed=3), blur=2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_belongs_to_the_upright_photo(tmp_path, orientation):
    save_stored(photo(), tmp_path / "photo.jpg", orientation, quality=95)
    mask().save(tmp_path / "photo-mask.png")
    require_over_subject(read(tmp_path))
    save_stored(mask().convert("RGB"), tmp_path / "photo-mask.jpg", orientation, quality=95)
    (tmp_path / "photo-mask.png").unlink()
    require_over_subject(read(tmp_path))


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_transparency_of_a_photo_is_its_mask_on_request(tmp_path, mirrored):
    image = photo()
    image.putalpha(mask())
    image.save(tmp_path / "photo.png")
    assert read(tmp_path, mirrored=mirrored).shares is None
    found = read(tmp_path, mirrored=mirrored, masks="alpha", background="blue")
    require_over_subject(found)
    mask().transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "photo-mask.png")
    photo().transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(tmp_path / "photo.png")
    require_over_subject(read(tmp_path, masks="alpha"))


def test_class_images_are_trained_whole(tmp_path):
    image = photo()
    image.putalpha(mask())
    image.save(tmp_path / "photo.png")
    dataset = DatasetConfig(photos=(tmp_path,), prompt="a", masks="alpha", random_backgrounds=3)
    example = Example(tmp_path / "photo.png", ("a dog",), is_prior=True)
    found = read_training_image(example, dataset, PIXELS, seed=0)
    assert found.shares is None
    assert len(found.versions) == 1


def test_a_mask_is_averaged_over_each_latent(tmp_path):
    """At a resolution of 64, a latent is 8x8 pixels of a photo of this size."""
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    image = Image.new("L", (64, 64))
    image.paste(255, (8, 20, 28, 40))
    image.save(tmp_path / "photo-mask.png")
    expected = np.zeros((8, 8))
    expected[2, 1:3], expected[3:5, 1:3] = 0.5, 1
    expected[2, 3], expected[3:5, 3] = 0.25, 0.5
    np.testing.assert_allclose(read(tmp_path, LATENTS).shares, expected, atol=1e-6)


# --- Random backgrounds -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "alpha"])
def test_the_subject_is_put_on_plain_colours(tmp_path, kind):
    image = photo()
    if kind == "alpha":
        image.putalpha(mask())
    else:
        mask().save(tmp_path / "photo-mask.png")
    image.save(tmp_path / "photo.png")
    found = read(tmp_path, masks="alpha" if kind == "alpha" else "auto", random_backgrounds=5)
    versions = [np.asarray(version) for version in found.versions]
    assert len(versions) == 5
    corners = {tuple(version[0, 0].tolist()) for version in versions}
    assert len(corners) == 5
    for version in versions:
        outside, inside = found.shares == 0, found.shares == 1
        # LANCZOS leaves traces of the edge up to three pixels away.
        far = np.abs(version.astype(int) - version[0, 0])[outside].max(axis=1)
        assert np.median(far) == 0
        assert (far <= 2).mean() > 0.9
        assert (np.abs(version[inside].astype(int) - (255, 0, 0)).max(axis=1) <= 2).mean() > 0.9
    if kind == "file":
        assert not any((version[..., 2] > 250).all() for version in versions)


def test_colours_depend_only_on_seed_and_content(tmp_path):
    mask().save(tmp_path / "photo-mask.png")
    photo().save(tmp_path / "photo.png")

    def corners(**options: object) -> list[list[int]]:
        found = read(tmp_path, random_backgrounds=4, **options).versions
        return [np.asarray(version)[0, 0].tolist() for version in found]

    first = corners()
    assert corners() == first
    assert corners(crop="random") == first
    others = [corners(seed=1), corners(mirrored=True)]
    photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "photo.png")
    others.append(corners())
    assert all(other != first for other in others)


def test_photos_without_a_mask_keep_their_background(tmp_path):
    photo().save(tmp_path / "photo.png")
    found = read(tmp_path, random_backgrounds=4)
    assert len(found.versions) == 1
    assert found.shares is None
