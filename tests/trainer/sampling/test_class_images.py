import copy
import itertools
import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from tests.trainer.sampling.progress import Progress
from trainer import families
from trainer.families.base import ModelFamily
from trainer.families.files import CheckpointFile
from trainer.observer import Observer
from trainer.sampling.class_images import MANIFEST, is_flat, make_class_images
from trainer.sampling.sampler import sample
from trainer.settings.config import PriorConfig, SamplingConfig

SAMPLING = SamplingConfig(scheduler="Euler", steps=2, guidance_scale=1, seed=40, batch_size=2)
PRIOR = PriorConfig(prompt="a photo of a cup", num_images=5, sampling=SAMPLING)


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> ModelFamily:
    """Loaded once: sampling does not change a model."""
    return families.load(tiny_checkpoint, torch.device("cpu"))


def make(
    model: ModelFamily, folder: Path, prior: PriorConfig = PRIOR, observer: Observer | None = None
) -> list[Path]:
    side = model.native_resolution
    return make_class_images(model, prior, folder, resolution=side, observer=observer)


def contents(paths: list[Path]) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in paths}


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_image_k_is_a_lossless_png_of_seed_plus_k(tiny_model: ModelFamily, tmp_path: Path):
    paths = make(tiny_model, tmp_path)
    images = sample(tiny_model, [PRIOR.prompt] * 5, SAMPLING)
    assert [path.name for path in paths] == [f"0000{seed}.png" for seed in range(40, 45)]
    for path, image in zip(paths, images, strict=True):
        with Image.open(path) as saved:
            assert saved.format == "PNG"
            assert np.array_equal(np.asarray(saved), image)


def test_the_manifest_records_how_each_image_was_made(tiny_model: ModelFamily, tmp_path: Path):
    sampling = replace(SAMPLING, guidance_scale=3, negative_prompt="häßlich")
    paths = make(tiny_model, tmp_path, replace(PRIOR, num_images=2, sampling=sampling))
    manifest = paths[0].parent / MANIFEST
    assert files_below(tmp_path) == sorted([*paths, manifest])
    entries = [json.loads(line) for line in manifest.read_text("utf-8").splitlines()]
    side = tiny_model.native_resolution
    for seed, entry in zip((40, 41), entries, strict=True):
        versions = entry.pop("versions")
        assert versions["torch"][0].isdigit()
        assert versions["diffusers"][0].isdigit()
        assert entry == {
            "file": f"0000{seed}.png", "seed": seed, "first_seed": 40,
            "base_sha256": tiny_model.source.sha256(),
            "prompt": "a photo of a cup", "negative_prompt": "häßlich", "scheduler": "Euler",
            "steps": 2, "guidance_scale": 3.0, "width": side, "height": side,
        }  # fmt: skip


def test_progress_counts_images_and_is_reported_at_every_step(
    tiny_model: ModelFamily, tmp_path: Path
):
    progress = Progress()
    make(tiny_model, tmp_path, replace(PRIOR, num_images=3), progress)
    done = [0] + [0, 0] + [1, 2] + [2, 2] + [3]  # start; two steps; two images; two steps; one
    assert progress.calls == [("Class images", number, 3) for number in done]


def test_files_are_reported_as_they_come_with_the_share_that_is_done(
    tiny_model: ModelFamily, tmp_path: Path
):
    heard: list[tuple[int, int, float]] = []

    class Listener(Observer):
        def on_class_images(self, files: Sequence[Path], total: int, share: float) -> None:
            assert all(path.is_file() for path in files)
            heard.append((len(files), total, round(share, 3)))

    make(tiny_model, tmp_path, replace(PRIOR, num_images=3), Listener())
    assert heard == [
        (0, 3, 0.0), (0, 3, 0.25), (0, 3, 0.5), (1, 3, 0.5), (2, 3, 0.667), (2, 3, 0.75),
        (2, 3, 1.0), (3, 3, 1.0),
    ]  # fmt: skip
    heard.clear()
    make(tiny_model, tmp_path, replace(PRIOR, num_images=4), Listener())
    assert heard[:3] == [(3, 4, 0.75), (3, 4, 0.875), (3, 4, 1.0)]


def test_repeating_a_request_makes_no_images(tiny_model: ModelFamily, tmp_path: Path):
    first = make(tiny_model, tmp_path)
    written = [path.stat().st_mtime_ns for path in first]
    progress = Progress()
    assert make(tiny_model, tmp_path, observer=progress) == first
    assert [path.stat().st_mtime_ns for path in first] == written
    assert progress.calls == [("Class images", 5, 5)]


def test_more_images_are_added_and_fewer_are_the_first_of_them(
    tiny_model: ModelFamily, tmp_path: Path
):
    two = contents(make(tiny_model, tmp_path, replace(PRIOR, num_images=2)))
    progress = Progress()
    five = make(tiny_model, tmp_path, observer=progress)
    assert contents(five[:2]) == two
    assert progress.calls[0] == ("Class images", 2, 5)
    assert make(tiny_model, tmp_path, replace(PRIOR, num_images=3)) == five[:3]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 7, 9])
def test_interrupted_and_resumed_equals_uninterrupted(
    tiny_model: ModelFamily, tmp_path: Path, stop_at: int
):
    """Interrupted in different calls of the observer: at the start; then two steps and two images
    for each of two batches; then two steps."""
    whole = make(tiny_model, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        make(tiny_model, tmp_path / "parts", observer=Progress(stop_at))
    kept = [path for path in files_below(tmp_path / "parts") if path.suffix == ".png"]
    assert len(kept) == [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4][stop_at - 1]
    resumed = make(tiny_model, tmp_path / "parts")
    if stop_at not in (4, 8):  # After half a batch, the next batches differ, and so their rounding.
        assert contents(resumed) == contents(whole)
    assert [path.name for path in resumed] == [path.name for path in whole]
    for left, right in zip(whole, resumed, strict=True):
        with Image.open(left) as one, Image.open(right) as other:
            assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a photo of a cat"},
        {"sampling": replace(SAMPLING, scheduler="UniPC")},
        {"sampling": replace(SAMPLING, steps=3)},
        {"sampling": replace(SAMPLING, guidance_scale=2)},
        {"sampling": replace(SAMPLING, negative_prompt="ugly")},
        {"sampling": replace(SAMPLING, seed=41)},
    ],
)
def test_images_of_other_settings_are_not_reused(
    tiny_model: ModelFamily, tmp_path: Path, change: dict
):
    mine, other = replace(PRIOR, num_images=2), replace(PRIOR, num_images=2, **change)
    before = contents(make(tiny_model, tmp_path, mine))
    made = make(tiny_model, tmp_path, other)
    assert contents(made) == contents(make(tiny_model, tmp_path / "alone", other))
    assert not set(made) & set(make(tiny_model, tmp_path, mine))
    assert contents(make(tiny_model, tmp_path, mine)) == before


def test_images_of_another_size_are_not_reused(tiny_model: ModelFamily, tmp_path: Path):
    prior, side = replace(PRIOR, num_images=1), tiny_model.native_resolution
    for resolution in (side, side - tiny_model.latent_factor, side):
        paths = make_class_images(tiny_model, prior, tmp_path, resolution=resolution)
        assert [size_of(path) for path in paths] == [(resolution, resolution)]
    assert len(list(tmp_path.iterdir())) == 2


def test_images_of_another_model_are_not_reused(tiny_model: ModelFamily, tmp_path: Path):
    """Even with equal weights: the model's file decides."""
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.ones(1)}, file)
    other = copy.copy(tiny_model)
    other.source = CheckpointFile(file)
    folder, prior = tmp_path / "priors", replace(PRIOR, num_images=1)
    mine = contents(make(tiny_model, folder, prior))
    assert make(tiny_model, folder, prior) != make(other, folder, prior)
    assert contents(make(tiny_model, folder, prior)) == mine
    assert len(list(folder.iterdir())) == 2


def test_images_are_reused_for_another_batch_size(tiny_model: ModelFamily, tmp_path: Path):
    first = make(tiny_model, tmp_path)
    progress = Progress()
    other = replace(PRIOR, sampling=replace(SAMPLING, batch_size=5, guidance_scale=1.0))
    assert make(tiny_model, tmp_path, other, progress) == first
    assert len(progress.calls) == 1


@pytest.mark.parametrize("zeros", [b"", bytes(30)], ids=["cut", "zeros"])
def test_images_that_are_damaged_or_not_in_the_manifest_are_reported_and_made_again(
    zeros: bytes, tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    prior = replace(PRIOR, sampling=replace(SAMPLING, batch_size=1))
    paths = make(tiny_model, tmp_path, prior)
    before, folder = contents(paths), paths[0].parent
    foreign = folder / "holiday.png"
    foreign.write_bytes(paths[0].read_bytes())
    Image.new("RGB", (4, 6)).save(paths[1])
    paths[2].write_bytes(b"not a picture")
    (folder / ".000099.png.1.part").write_bytes(b"half a pict")
    manifest = folder / MANIFEST
    # The last line was broken off while it was written, or the power failed.
    manifest.write_bytes(manifest.read_bytes()[:-30] + zeros)
    assert contents(make(tiny_model, tmp_path, prior)) == before
    side = tiny_model.native_resolution
    assert caplog.messages == [
        f"The class image {paths[1]} is 4x6 pixels, not {side}x{side}. It is not used.",
        f"The class image {paths[2]} cannot be read. It is not used.",
        f"The class image {paths[4]} is not listed in manifest.jsonl. It is not used.",
        f"The class image {foreign} is not listed in manifest.jsonl. It is not used.",
    ]
    assert all(json.loads(line) for line in manifest.read_text("utf-8").splitlines())
    foreign.unlink()
    caplog.clear()
    assert contents(make(tiny_model, tmp_path, prior)) == before
    assert caplog.messages == []


def test_a_prompt_with_unicode_line_breaks_is_found_again(
    tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    prior = replace(PRIOR, prompt="a cup\u2028on a table", num_images=1)
    assert make(tiny_model, tmp_path, prior) == make(tiny_model, tmp_path, prior)
    assert caplog.messages == []


def test_damage_in_the_manifest_and_malicious_images_affect_only_their_own_images(
    tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    paths = make(tiny_model, tmp_path)
    before, manifest = contents(paths), paths[0].parent / MANIFEST
    lines = manifest.read_text().splitlines()
    entry = json.loads(lines[0])
    wrong = [5, None, [1], "text", {}, {**entry, "seed": "x"}, {**entry, "seed": [1]}]
    damaged = [*map(json.dumps, wrong), json.dumps({**entry, "seed": float("inf")}), "[" * 99_999]
    manifest.write_text("\n".join([*damaged, *lines]) + "\n")
    claims_to_be_huge = bytearray(paths[1].read_bytes())
    claims_to_be_huge[16:24] = struct.pack(">II", 60_000, 60_000)
    claims_to_be_huge[29:33] = struct.pack(">I", zlib.crc32(claims_to_be_huge[12:29]))
    paths[1].write_bytes(claims_to_be_huge)
    assert contents(make(tiny_model, tmp_path)) == before
    assert caplog.messages == [f"The class image {paths[1]} cannot be read. It is not used."]


def test_an_image_is_on_disk_before_the_manifest_lists_it(
    tiny_model: ModelFamily, tmp_path: Path, disk_events: list[str], safely_written
):
    (path,) = make(tiny_model, tmp_path, replace(PRIOR, num_images=1))
    listed = f"flushed {(path.parent / MANIFEST).stat().st_size}"
    *_, synced = written = safely_written(path)
    names = [synced] if synced == "flushed names" else []  # not on Windows
    assert disk_events == [*names, *written, listed, *names]


def test_a_list_of_images_that_the_disk_cannot_read_is_named(
    tiny_model: ModelFamily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make(tiny_model, tmp_path, replace(PRIOR, num_images=1))[0].parent

    def fail(path: Path, *rest: object, **others: object) -> str:
        raise OSError(5, "it broke")  # reading names no file, unlike opening

    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(OSError) as caught:
        make(tiny_model, tmp_path, PRIOR)
    assert caught.value.filename == str(folder / MANIFEST)


def test_an_image_in_one_colour_is_flat():
    image = np.full((8, 8, 3), (200, 30, 90), np.uint8)
    assert is_flat(image)
    assert is_flat(np.zeros((8, 8, 3), np.uint8))
    image[3, 4, 1] += 2
    assert is_flat(image)
    image[3, 4, 1] += 1
    assert not is_flat(image)


def blacken_half(model: ModelFamily) -> ModelFamily:
    """A copy of the model that draws black from latents with a negative sum, as overflow would."""
    model = copy.deepcopy(model)
    model.vae.decoder.register_forward_hook(
        lambda _, args, pixels: pixels if args[0].sum() > 0 else torch.full_like(pixels, -1)
    )
    return model


def test_black_images_are_replaced_by_those_of_other_seeds(
    tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = blacken_half(tiny_model)
    prior = replace(PRIOR, num_images=4, sampling=replace(SAMPLING, batch_size=1))
    images = sample(model, [PRIOR.prompt] * 14, prior.sampling)
    good = [seed for seed, image in enumerate(images, start=40) if image.max() > 0][:4]
    assert good != [40, 41, 42, 43]
    whole = make(model, tmp_path / "whole", prior)
    assert [path.name for path in whole] == [f"0000{seed}.png" for seed in good]
    black = good[-1] - 40 + 1 - 4
    assert len(caplog.messages) == black
    for stop_at in (4, 7, 10):
        with pytest.raises(KeyboardInterrupt):
            make(model, tmp_path / "parts", prior, Progress(stop_at))
    assert contents(make(model, tmp_path / "parts", prior)) == contents(whole)
    caplog.clear()
    make(model, tmp_path / "whole", prior)
    assert caplog.messages == []  # no seed is tried again once there are enough images


def test_many_black_images_are_accepted_among_as_many_good_ones(
    tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model, turns = copy.deepcopy(tiny_model), itertools.cycle([1, -1])
    # Every second image is black.
    model.vae.decoder.register_forward_hook(
        lambda _, args, pixels: pixels if next(turns) > 0 else torch.full_like(pixels, -1)
    )
    prior = replace(PRIOR, num_images=12, sampling=replace(SAMPLING, steps=1))
    assert len(make(model, tmp_path, prior)) == 12
    assert len(caplog.messages) > 8


def test_a_model_that_draws_only_one_colour_is_rejected(
    tiny_model: ModelFamily, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = copy.deepcopy(tiny_model)
    nn.init.zeros_(model.vae.decoder.conv_out.weight)
    with pytest.raises(ValueError, match="class images") as error:
        make(model, tmp_path, replace(PRIOR, num_images=3))
    assert str(error.value) == (
        "8 of 8 class images came out black or in one colour, so this model cannot draw the class "
        "with these settings. Choose fp32 precision, another base checkpoint, or a folder of your "
        "own images (prior.images)."
    )
    assert caplog.messages[0] == (
        "The class image of seed 40 came out black or in one colour and was discarded (1 so far). "
        "The next seed replaces it."
    )
    assert len(caplog.messages) == 8
    assert files_below(tmp_path) == []


def test_a_missing_class_prompt_is_refused(tiny_model: ModelFamily, tmp_path: Path):
    with pytest.raises(ValueError, match="prompt") as error:
        make(tiny_model, tmp_path, PriorConfig())
    assert str(error.value) == (
        "prior.prompt is empty. Name the class, such as 'a photo of a dog'."
    )


@pytest.mark.posix
def test_a_manifest_that_is_a_link_changes_no_other_file(tiny_model: ModelFamily, tmp_path: Path):
    thesis = tmp_path / "thesis.txt"
    thesis.write_text("a thesis")
    (image,) = make(tiny_model, tmp_path / "class", replace(PRIOR, num_images=1))
    manifest = image.parent / MANIFEST
    manifest.unlink()
    manifest.symlink_to(thesis)
    make(tiny_model, tmp_path / "class", replace(PRIOR, num_images=1))
    assert thesis.read_text() == "a thesis"
    assert len(manifest.read_text("utf-8").splitlines()) == 1
