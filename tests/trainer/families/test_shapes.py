"""Shapes of networks without their weights: the published ones, and those of files."""

from __future__ import annotations

import pytest

from trainer.families.shapes import SD15, SDXL, NetworkShape, read_shape
from trainer.settings.config import ModelOptions


def test_published_shapes_have_the_published_numbers_of_parameters():
    found = [
        [sum(p.numel() for p in network.parameters()) for network in (model.unet, model.vae)]
        for model in (SD15, SDXL)
    ]
    assert found == [[859_520_964, 83_653_863], [2_567_463_684, 83_653_863]]
    encoders = [sum(p.numel() for p in each.parameters()) for each in SDXL.text_encoders]
    # CLIP-L without its last layer and its final norm, which XL does not use: of 123,060,480.
    # bigG with its projection (1280 x 1280).
    assert encoders == [123_060_480 - 7_087_872 - 1536, 693_021_440 + 1280**2]


def test_a_files_shape_is_that_of_the_loaded_model(tiny_checkpoint, tiny_model):
    shape = read_shape(tiny_checkpoint, ModelOptions())
    pairs = [
        (shape.unet, tiny_model.unet),
        (shape.vae, tiny_model.vae),
        (shape.text_encoders[0], tiny_model.text_encoders[0]),
    ]
    for described, loaded in pairs:
        sizes = [tuple(p.shape) for p in described.parameters()]
        assert sorted(sizes) == sorted(tuple(p.shape) for p in loaded.parameters())
    assert (shape.resolution, shape.latent_factor) == (16, tiny_model.latent_factor)
    assert shape.name == tiny_checkpoint.name


def test_clip_skip_leaves_layers_out(tiny_checkpoint):
    whole, shorter = (
        read_shape(tiny_checkpoint, ModelOptions(clip_skip=skip)).text_encoders[0]
        for skip in (1, 2)
    )
    assert whole.option("num_hidden_layers") - shorter.option("num_hidden_layers") == 1


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_shape(tmp_path / "missing.safetensors", ModelOptions())


def test_shapes_with_the_same_options_are_equal():
    one, other = (NetworkShape.of("vae", {"block_out_channels": w}) for w in ([1, 2], (1, 2)))
    assert one == other
    assert hash(one) == hash(other)
