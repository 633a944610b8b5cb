from __future__ import annotations

import random
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer import families
from trainer.data.examples import Example, find_examples, with_mirrors
from trainer.data.images import read_with_alpha
from trainer.data.latents import CachedLatents, encode_examples
from trainer.families.base import Framing, ModelFamily
from trainer.observer import Observer
from trainer.settings.config import DatasetConfig


def save_noise(path: Path, size: tuple[int, int], seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Five different photos, three of the same name, two folders, several shapes."""
    sizes = {"a/1.png": (16, 16), "b/1.png": (24, 17), "b/2.png": (16, 40), "c/1.png": (33, 16)}
    sizes["c/10.png"] = (16, 16)
    return [
        save_noise(tmp_path / name, size, seed) for seed, (name, size) in enumerate(sizes.items())
    ]


def encode(
    examples: Sequence[Example], model: ModelFamily, *, seed: int = 0, **changes: object
) -> dict[Example, CachedLatents]:
    settings = {"photos": (Path("photos"),), "prompt": "a sks cup", **changes}
    return encode_examples(examples, DatasetConfig(**settings), model, Observer(), seed=seed)


def equal(one: CachedLatents, other: CachedLatents) -> bool:
    """Bit-identical, framing included."""
    same = torch.equal(one.mean, other.mean) and torch.equal(one.std, other.std)
    return same and one.framing == other.framing


@pytest.mark.parametrize("changes", [{}, {"crop": "random"}, {"buckets": True, "crop": "random"}])
def test_an_examples_latents_do_not_depend_on_the_others_or_their_order(
    photos: list[Path], tiny_model: ModelFamily, changes: dict[str, object]
) -> None:
    examples = with_mirrors(find_examples(photos, "a sks cup"))
    shuffled = random.Random(1).sample(examples, len(examples))

    latents = encode(shuffled, tiny_model, seed=5, **changes)

    assert list(latents) == shuffled
    for example in examples:
        alone = encode([example], tiny_model, seed=5, **changes)[example]
        assert [e for e in examples if equal(latents[e], alone)] == [example]


def test_one_photo_at_a_time_is_in_memory(
    photos: list[Path], tiny_model: ModelFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Image.Image]] = []

    def read(path: Path) -> Image.Image:
        assert not any(image() for image in alive)
        image = read_with_alpha(path)
        alive.append(weakref.ref(image))
        return image

    monkeypatch.setattr("trainer.data.training_images.read_with_alpha", read)
    encode(find_examples(photos, "a sks cup"), tiny_model)
    assert len(alive) == len(photos)


def test_the_latents_are_the_vaes_encoding_of_the_pixels(
    tmp_path: Path, tiny_model: ModelFamily
) -> None:
    path = save_noise(tmp_path / "a.png", (24, 16), 0)
    example, twin = with_mirrors([Example(path, ("a cup",))])

    latents = encode([example, twin], tiny_model)

    pixels = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 127.5 - 1
    centre = pixels[None, :, :, 4:20]
    for shown, kept in [(example, centre), (twin, centre.flip(3))]:
        expected = tiny_model.vae.encode(kept).latent_dist
        torch.testing.assert_close(latents[shown].mean, expected.mean[0] * 0.18215)
        torch.testing.assert_close(latents[shown].std, expected.std[0] * 0.18215)
        assert latents[shown].framing == Framing((24, 16), (4, 0), (16, 16))


def test_the_cache_is_small_and_holds_no_autograd_graph(
    photos: list[Path], tiny_model: ModelFamily
) -> None:
    tiny_model.vae.requires_grad_(True)

    for cached in encode(find_examples(photos, "a cup"), tiny_model).values():
        for tensor in (cached.mean, cached.std):
            assert (tensor.shape, tensor.dtype) == ((4, 8, 8), torch.float32)
            assert tensor.device.type == "cpu"
            assert not tensor.requires_grad
            assert tensor.untyped_storage().nbytes() <= 2 * 4 * 4 * 8 * 8


def test_buckets_keep_the_shape_of_each_photo(photos: list[Path], tiny_model: ModelFamily) -> None:
    examples = find_examples(photos, "a cup")

    latents = encode(examples, tiny_model, buckets=True, resolution=32, allow_upscaling=True)

    # 24x17 is closest to 40x24; 16x40 and 33x16 are longer than 2:1 and cropped
    sizes = [(32, 32), (40, 24), (24, 40), (40, 24), (32, 32)]
    assert [latents[example].framing.size for example in examples] == sizes
    assert [latents[e].mean.shape for e in examples] == [(4, h // 2, w // 2) for w, h in sizes]


def test_random_crops_follow_the_seed(tmp_path: Path, tiny_model: ModelFamily) -> None:
    example = Example(save_noise(tmp_path / "a.png", (400, 16), 0), ("a cup",))

    def left(seed: int) -> int:
        return encode([example], tiny_model, crop="random", seed=seed)[example].framing.crop[0]

    assert left(0) == left(0)
    assert len({left(seed) for seed in range(8)}) > 4


def test_transparent_pixels_show_the_background(tmp_path: Path, tiny_model: ModelFamily) -> None:
    Image.new("RGBA", (16, 16)).save(tmp_path / "clear.png")
    Image.new("RGB", (16, 16), "#008080").save(tmp_path / "teal.png")
    clear, teal = (Example(tmp_path / name, ("a cup",)) for name in ("clear.png", "teal.png"))

    latents = encode([clear, teal], tiny_model, background="teal")

    assert equal(latents[clear], latents[teal])


def save_mask(photo: Path, box: tuple[int, int, int, int]) -> Path:
    """A mask beside a photo that is white in a box."""
    with Image.open(photo) as image:
        mask = Image.new("L", image.size)
    mask.paste(255, box)
    mask.save(photo.with_name(f"{photo.stem}-mask.png"))
    return photo.with_name(f"{photo.stem}-mask.png")


def test_masks_become_weights_of_the_loss(tmp_path: Path, tiny_model: ModelFamily) -> None:
    """At 16 pixels a latent is 2x2 pixels, and the middle 16 of 24 columns are trained."""
    path = save_noise(tmp_path / "a.png", (24, 16), 0)
    example = Example(path, ("a cup",), mask=save_mask(path, (6, 4, 9, 12)))
    expected = np.zeros((8, 8))
    expected[2:6, 1], expected[2:6, 2] = 1, 0.5

    def weights_of(**changes: object) -> np.ndarray:
        (cached,) = encode([example], tiny_model, **changes).values()
        assert cached.weights is not None
        return cached.weights.numpy()

    np.testing.assert_allclose(weights_of(unmasked_weight=0), expected / expected.mean())
    rest = expected + 0.1 * (1 - expected)
    np.testing.assert_allclose(weights_of(), rest / rest.mean(), rtol=1e-6)
    (plain,) = encode([Example(path, ("a cup",))], tiny_model).values()
    assert plain.weights is None


def test_each_background_is_encoded_and_one_is_drawn(
    tmp_path: Path, tiny_model: ModelFamily
) -> None:
    path = save_noise(tmp_path / "a.png", (16, 16), 0)
    example = Example(path, ("a cup",), mask=save_mask(path, (4, 4, 12, 12)))
    (cached,) = encode([example], tiny_model, random_backgrounds=3).values()
    means = [cached.mean, *(mean for mean, _ in cached.others)]
    assert len(means) == 3
    assert all(not torch.equal(one, other) for one, other in zip(means, means[1:], strict=False))
    sharp = replace(
        cached,
        std=torch.zeros_like(cached.std),
        others=tuple((mean, torch.zeros_like(std)) for mean, std in cached.others),
    )
    generator, counts = torch.Generator().manual_seed(0), [0, 0, 0]
    for _ in range(300):
        drawn = sharp.draw(generator)
        counts[[torch.equal(drawn, mean) for mean in means].index(True)] += 1
    assert all(70 < count < 130 for count in counts)


def test_progress_is_reported_after_each_image(photos: list[Path], tiny_model: ModelFamily) -> None:
    heard: list[tuple[str, int, int]] = []

    class Listener(Observer):
        def on_progress(self, activity: str, done: int, total: int) -> None:
            heard.append((activity, done, total))

    dataset = DatasetConfig(photos=tuple(photos), prompt="a cup")
    encode_examples(find_examples(photos, "a cup"), dataset, tiny_model, Listener(), seed=0)

    assert heard == [("Encoding photos", done, 5) for done in range(1, 6)]
    heard.clear()
    examples = find_examples(photos, "a cup", is_prior=True)
    encode_examples(examples, dataset, tiny_model, Listener(), seed=0)
    assert heard == [("Encoding class images", done, 5) for done in range(1, 6)]


def test_drawn_latents_have_the_mean_and_std_and_differ_each_time() -> None:
    mean = torch.tensor([-3.0, 5.0]).view(2, 1, 1).expand(2, 50, 50)
    std = torch.tensor([0.5, 0.1]).view(2, 1, 1).expand(2, 50, 50)
    cached = CachedLatents(mean, std, Framing((8, 8), (0, 0), (8, 8)))
    generator = torch.Generator().manual_seed(0)

    first, second = cached.draw(generator), cached.draw(generator)

    assert not torch.equal(first, second)
    torch.testing.assert_close(first.mean((1, 2)), torch.tensor([-3.0, 5.0]), atol=0.04, rtol=0)
    torch.testing.assert_close(first.std((1, 2)), torch.tensor([0.5, 0.1]), atol=0, rtol=0.05)
    assert torch.equal(first, cached.draw(torch.Generator().manual_seed(0)))


def test_drawing_and_encoding_do_not_touch_the_global_generator(
    photos: list[Path], tiny_model: ModelFamily
) -> None:
    before = torch.get_rng_state()

    latents = encode(find_examples(photos, "a cup"), tiny_model, crop="random")
    next(iter(latents.values())).draw(torch.Generator().manual_seed(0))

    assert torch.equal(torch.get_rng_state(), before)


def test_a_small_photo_is_refused(tmp_path: Path, tiny_model: ModelFamily) -> None:
    example = Example(save_noise(tmp_path / "a.png", (20, 15), 0), ("a cup",))

    with pytest.raises(ValueError, match="smaller") as error:
        encode([example], tiny_model)

    assert str(error.value) == (
        "'a.png' is 20x15 pixels, smaller than the training resolution 16. Use larger images, "
        "lower dataset.resolution or switch on dataset.allow_upscaling."
    )


def test_small_photos_are_enlarged_on_request_with_one_warning(
    tmp_path: Path, tiny_model: ModelFamily, caplog: pytest.LogCaptureFixture
) -> None:
    sizes = [(8, 8), (64, 64), (8, 20)]
    paths = [save_noise(tmp_path / f"{n}.png", size, n) for n, size in enumerate(sizes)]

    latents = encode(
        with_mirrors([Example(path, ("a cup",)) for path in paths]),
        tiny_model,
        allow_upscaling=True,
    )

    assert {cached.framing.size for cached in latents.values()} == {(16, 16)}
    assert caplog.messages == [
        "Images smaller than the training resolution 16 were enlarged, which softens them (2): "
        "0.png, 2.png."
    ]


def test_a_resolution_that_is_not_a_multiple_of_the_latent_factor_is_refused(
    tiny_model: ModelFamily,
) -> None:
    tiny_model.latent_factor = 16

    with pytest.raises(ValueError, match="multiple") as error:
        encode([], tiny_model, resolution=40)

    assert str(error.value) == (
        "dataset.resolution must be a multiple of 16 for Stable Diffusion 1, got 40. Choose 32 or "
        "48."
    )


@pytest.mark.parametrize(("resolution", "choices"), [(520, "512 or 576"), (40, "64")])
def test_a_resolution_that_is_not_a_multiple_of_the_bucket_step_is_refused(
    tiny_model: ModelFamily, resolution: int, choices: str
) -> None:
    tiny_model.native_resolution = 512

    with pytest.raises(ValueError, match="multiple") as error:
        encode([], tiny_model, resolution=resolution, buckets=True)

    assert str(error.value) == (
        f"dataset.resolution must be a multiple of 64 with dataset.buckets, got {resolution}. "
        f"Choose {choices}."
    )


def test_a_folder_of_mixed_photos_end_to_end(tmp_path: Path, tiny_model: ModelFamily) -> None:
    for number, suffix in enumerate(["jpg", "webp", "gif", "tif", "bmp"]):
        save_noise(tmp_path / f"{number}.{suffix}", (20 + number, 30), number)
    (tmp_path / "Thumbs.db").touch()

    latents = encode(find_examples([tmp_path], "a cup"), tiny_model)

    assert [example.path.suffix for example in latents] == [".jpg", ".webp", ".gif", ".tif", ".bmp"]
    means = [cached.mean for cached in latents.values()]
    assert all(not torch.equal(one, other) for one, other in zip(means, means[1:], strict=False))


class RecordingModel:
    """A model, and the pixels that it encoded last."""

    def __init__(self, model: ModelFamily) -> None:
        self.model = model
        self._encode_pixels = model.encode_pixels
        model.encode_pixels = self._record  # type: ignore[method-assign]

    def _record(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.pixels = pixels[0]
        return self._encode_pixels(pixels)


@pytest.fixture(scope="module")
def recording(tiny_checkpoint: Path) -> RecordingModel:
    return RecordingModel(families.load(tiny_checkpoint, torch.device("cpu")))


sides = st.integers(8, 110)


@settings(deadline=None, max_examples=150)
@given(sides, sides, st.sampled_from(["center", "random"]), *[st.booleans()] * 2, st.integers(0, 9))
def test_no_photo_is_ever_stretched(
    recording: RecordingModel,
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    crop: str,
    buckets: bool,
    mirrored: bool,
    seed: int,
) -> None:
    """Red rises from left to right and green from top to bottom by two levels per pixel, so each
    pixel that the model encodes tells which position of the photo it shows, to a quarter pixel."""
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    ramps = np.stack([across, down, np.zeros_like(across)], axis=2) * 2 + 20
    path = tmp_path_factory.mktemp("photos") / "a.png"
    Image.fromarray(ramps.astype(np.uint8)).save(path)
    example = Example(path, "a sks cup", mirrored=mirrored)

    wanted = {"resolution": 32, "allow_upscaling": True, "crop": crop, "buckets": buckets}
    framing = encode([example], recording.model, seed=seed, **wanted)[example].framing

    shown = ((recording.pixels + 1) * 127.5 - 20) / 2
    assert tuple(shown.shape[1:]) == framing.size[::-1]
    scale = max(framing.size[0] / width, framing.size[1] / height)
    for channel, side in enumerate((width, height)):
        profile = shown[channel].mean(dim=channel).numpy()
        profile = profile[::-1] if mirrored and channel == 0 else profile
        positions = (np.arange(len(profile)) + 0.5) / scale
        margin = 4 * max(1, 1 / scale)  # beyond the photo's edge the filter has no neighbours
        offset = profile - positions
        inside = (profile > margin) & (profile < side - 1 - margin)
        # Everything is offset by the same crop, to within a pixel.
        assert not inside.any() or np.ptp(offset[inside]) <= 1
