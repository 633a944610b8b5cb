"""Images in tiles, with the trained VAE of the toy model and an error for all larger inputs."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from trainer import families, toy
from trainer.families.base import ModelFamily

SIDE = 256
"""Four photos wide and high."""
ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
]
MESSAGE = (
    "Memory is too short to {verb} a whole image of {width}x{height} pixels, so such images are "
    "{verb}d in overlapping tiles, whose colours may differ a little. Close other programs that "
    "use memory, or choose a smaller size."
)


@pytest.fixture
def model() -> ModelFamily:
    return families.load(toy.MODEL, torch.device("cpu"))


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """The toy model's photos side by side [1, 3, 256, 256]."""
    photos = sorted((toy.MODEL.parent / "photos").glob("*.png"))
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in photos[:4]]
    row = np.concatenate(arrays, axis=1)
    picture = np.concatenate([row, np.roll(row, 64, 1), np.roll(row, 128, 1), row])
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 127.5 - 1


def limit(part: torch.nn.Module, error: Exception, largest: int) -> list[torch.Size]:
    """Make the encoder or decoder raise an error for inputs with more than `largest` numbers per
    channel. Returns the sizes of all inputs."""
    sizes = []

    def check(_: object, args: tuple[Tensor, ...]) -> None:
        sizes.append(args[0].shape[2:])
        if sizes[-1].numel() > largest:
            raise error

    part.register_forward_pre_hook(check)
    return sizes


@torch.no_grad()
@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "computer", "library"])
@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (160, SIDE), (SIDE, 128)])
def test_an_image_that_does_not_fit_is_decoded_in_tiles(
    model, pixels, error, height, width, caplog
):
    latents, _ = model.encode_pixels(pixels[..., :height, :width])
    whole = model.decode_latents(latents)
    settings = dict(vars(model.vae))
    sizes = limit(model.vae.decoder, error, latents[0, 0].numel() - 1)
    for _ in range(2):
        tiled = model.decode_latents(latents)
        assert tiled.shape == whole.shape
        levels = (tiled - whole).abs() * 127.5
        assert 0 < levels.mean() < 3
        assert levels.max() < 30
    assert max(size.numel() for size in sizes[1:] if size != sizes[0]) <= 40 * 40
    assert dict(vars(model.vae)) == settings  # tiles are off again
    assert caplog.messages == [MESSAGE.format(verb="decode", width=width, height=height)]


@torch.no_grad()
def test_tiles_leave_no_seams(model, pixels):
    """Nowhere does the brightness between two columns of pixels change otherwise than in the whole
    image. Tiles without blending would change it by 28 levels at their border."""
    latents, _ = model.encode_pixels(pixels)
    whole = model.decode_latents(latents)
    limit(model.vae.decoder, MemoryError(), 40 * 40)
    changes = (model.decode_latents(latents) - whole).diff(dim=3).abs().mean(dim=(0, 1, 2)) * 127.5
    assert changes.max() < 2


@torch.no_grad()
def test_a_photo_that_does_not_fit_is_encoded_in_tiles(model, pixels, caplog):
    """Its latents are nearer to those of the whole photo than the VAE's own error."""
    mean, std = model.encode_pixels(pixels)
    whole = model.decode_latents(mean)
    limit(model.vae.encoder, MemoryError(), 160 * 160)
    tiled_mean, tiled_std = model.encode_pixels(pixels)
    assert 0 < (tiled_mean - mean).norm() < 0.06 * mean.norm()
    assert (tiled_std - std).norm() < 0.1 * std.norm()
    assert (model.decode_latents(tiled_mean) - whole).abs().mean() < (whole - pixels).abs().mean()
    assert caplog.messages == [MESSAGE.format(verb="encode", width=SIDE, height=SIDE)]


@torch.no_grad()
def test_other_errors_are_not_hidden(model, caplog):
    limit(model.vae.decoder, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), 0)
    with pytest.raises(RuntimeError, match="mat1"):
        model.decode_latents(torch.zeros(1, 4, 16, 16))
    assert caplog.messages == []


@torch.no_grad()
def test_where_tiles_do_not_fit_either_the_error_comes_through(model):
    limit(model.vae.decoder, MemoryError("too large"), 0)
    with pytest.raises(MemoryError, match="too large"):
        model.decode_latents(torch.zeros(1, 4, 16, 16))
    assert not model.vae.use_tiling


@torch.no_grad()
def test_an_image_that_fits_is_decoded_as_a_whole(model, pixels, caplog):
    caplog.set_level(logging.INFO)
    latents, _ = model.encode_pixels(pixels)
    expected = model.vae.decode(latents / model.constants.latent_scale).sample
    assert torch.equal(model.decode_latents(latents), expected)
    assert caplog.messages == []
