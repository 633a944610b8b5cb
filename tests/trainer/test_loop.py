"""Whole runs on a tiny checkpoint: their losses, weights, files and failures."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.data.batches import BatchStream
from trainer.families.sd1 import SD1
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainer.training.ema import EMA

CPU = torch.device("cpu")


class Previews(Observer):
    def __init__(self):
        self.images = []

    def on_preview(self, step, images):
        self.images += images


@pytest.fixture
def config(tiny_checkpoint, draw_photos, tmp_path) -> TrainingConfig:
    """Four steps on three photos, without class images."""
    photos = draw_photos(tmp_path / "photos", 3, side=32)
    return TrainingConfig(
        base=tiny_checkpoint,
        dataset=DatasetConfig(photos=(photos,), prompt="a photo of sks dog", resolution=16),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        output=OutputConfig(folder=tmp_path / "out", name="dog", dtype="fp32"),
        steps=4,
        batch_size=2,
    )


@pytest.fixture
def prior(draw_photos, tmp_path) -> PriorConfig:
    folder = draw_photos(tmp_path / "class", 4, side=32, seed=1)
    return PriorConfig(weight=0.5, prompt="a photo of a dog", images=(folder,))


def run(config: TrainingConfig, observer: Observer | None = None, **options: object):
    result = train(config, FullFineTune(**options), device=CPU, observer=observer)
    return [report.loss for report in result.reports], load_file(result.checkpoint), result


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def part_of(name: str) -> str:
    prefixes = {"model.diffusion_model.": "unet", "cond_stage_model.": "text_encoder"}
    return next((part for prefix, part in prefixes.items() if name.startswith(prefix)), "other")


@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_only_trained_parts_differ_in_the_file(config, train_text_encoder):
    before = load_file(config.base)
    _, after, result = run(config, train_text_encoder=train_text_encoder)
    assert list(after) == list(before)
    changed = {
        part_of(name)
        for name in before
        if not torch.equal(before[name].float(), after[name].float())
    }
    assert changed == ({"unet", "text_encoder"} if train_text_encoder else {"unet"})
    assert set(result.moved) == changed
    untouched = [name for name in before if part_of(name) not in changed]
    assert all(
        torch.equal(before[n], after[n]) and before[n].dtype == after[n].dtype for n in untouched
    )


def test_the_same_seed_gives_the_same_losses_and_weights(config, prior):
    config = replace(config, prior=prior)
    first = run(config, train_text_encoder=True)
    second = run(config, train_text_encoder=True)
    assert first[0] == second[0]
    assert same(first[1], second[1])
    assert run(replace(config, seed=1))[0] != pytest.approx(first[0], rel=1e-3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_previews_change_nothing(config, batch_size):
    seen, drawn = [], []

    class Watching(Observer):
        def on_preview(self, step, images):
            seen.append((step, [image.shape for image in images]))
            drawn.append(images)

    sampling = SamplingConfig(steps=2, batch_size=batch_size, scheduler="Euler ancestral")
    preview = PreviewConfig(prompts=("a dog", "a cat", "a cup"), every=2, sampling=sampling)
    plain = run(config)
    previewed = run(replace(config, preview=preview), Watching())
    assert seen == [(step, [(16, 16, 3)] * 3) for step in (0, 2, 4)]
    assert previewed[0] == plain[0]
    assert same(previewed[1], plain[1])
    assert np.array_equal(previewed[2].previews, drawn[-1])
    assert not np.array_equal(drawn[1], drawn[-1])


def test_timesteps_are_drawn_from_the_models_own_schedule(config, monkeypatch):
    """With a schedule of ten timesteps, any other timestep would be out of range."""
    monkeypatch.setattr("trainer.noise.NUM_TIMESTEPS", 10)
    losses, _, _ = run(replace(config, batch_size=8))
    assert all(0 < loss < 10 for loss in losses)


class Previewed(Observer):
    """Records the steps with previews, and finishes the run at a step."""

    def __init__(self, finish_at: int = 0) -> None:
        self.steps: list[int] = []
        self.finish_at, self.made = finish_at, 0

    def on_step(self, report):
        self.made = report.step

    def wants_to_finish(self):
        return self.made == self.finish_at

    def on_preview(self, step, images):
        self.steps.append(step)


@pytest.mark.parametrize(("finish_at", "expected"), [(0, [0, 3, 4]), (2, [0, 2]), (3, [0, 3])])
def test_the_result_always_has_previews(config, finish_at, expected):
    """Whether it is finished as planned or early, and whatever the interval."""
    sampling = SamplingConfig(steps=1, guidance_scale=1)
    preview = PreviewConfig(prompts=("a dog",), every=3, sampling=sampling)
    watching = Previewed(finish_at)
    _, _, result = run(replace(config, preview=preview), watching)
    assert watching.steps == expected
    assert len(result.previews) == 1


class Asking(Observer):
    """Asks for previews and a save at some steps, and records what is drawn and saved."""

    def __init__(self, previews_at=(), saves_at=()):
        self.step, self.drawn, self.saved = 0, {}, []
        self._previews_at, self._saves_at = previews_at, saves_at

    def on_step(self, report):
        self.step = report.step

    def wants_preview(self):
        return self.step in self._previews_at

    def wants_save(self):
        return self.step in self._saves_at

    def on_preview(self, step, images):
        self.drawn[step] = images

    def on_checkpoint(self, step, path):
        self.saved.append((step, path.name))


def test_previews_and_saves_can_be_requested_at_any_step(config):
    sampling = SamplingConfig(steps=1, guidance_scale=1)
    preview = PreviewConfig(prompts=("a dog",), every=3, sampling=sampling)
    asking = Asking(previews_at=(1, 3), saves_at=(2,))
    asked = run(replace(config, preview=preview), asking)
    assert list(asking.drawn) == [0, 1, 3, 4]
    assert [step for step, _ in asking.saved] == [2, 4]
    unasked = run(replace(config, preview=preview))
    assert same(asked[1], unasked[1])


def test_a_preview_cannot_be_requested_without_prompts(config):
    asking = Asking(previews_at=(1,))
    run(config, asking)
    assert asking.drawn == {}


def test_the_first_previews_are_the_base_models_of_the_same_noise(config):
    """A run that learns nothing draws them again."""
    sampling = SamplingConfig(steps=2, guidance_scale=2)
    preview = PreviewConfig(prompts=("a dog", "a cat"), every=4, sampling=sampling)
    asking = Asking()
    slow = replace(config.optimizer, learning_rate=1e-30)
    with pytest.raises(RuntimeError, match="no weight"):
        run(replace(config, preview=preview, optimizer=slow), asking)
    assert list(asking.drawn) == [0, 4]
    assert np.array_equal(asking.drawn[0], asking.drawn[4])


def test_a_short_run_in_fp16_makes_all_its_steps(config):
    """The first loss scales are too large: those steps are skipped and repeated."""
    received = []

    class Receiver(Observer):
        def on_skipped_step(self, step):
            received.append(step)

        def on_step(self, report):
            received.append(-report.step)

    prior = PriorConfig(weight=1e5, prompt="a cat", images=config.dataset.photos)
    config = replace(config, precision="fp16", prior=prior, steps=1)
    _, _, result = run(config, Receiver())
    num_skipped = len(received) - 1
    assert received == [1] * num_skipped + [-1]
    assert num_skipped > 2
    assert result.reports[0].skipped_steps == num_skipped
    assert result.moved["unet"][1] > 0.5
    with safe_open(result.checkpoint, framework="pt") as file:
        assert file.metadata()["dreambooth.skipped_steps"] == str(num_skipped)


def test_a_private_file_names_no_photos_even_if_its_base_does(config, caplog):
    caplog.set_level(logging.INFO)
    (config.dataset.photos[0] / "0.png").rename(config.dataset.photos[0] / "emma.png")
    dataset = replace(config.dataset, prompt="a photo of emma")
    public = run(replace(config, dataset=dataset))[2].checkpoint
    said = (
        "The file's metadata contains the prompts and the names of the photos. Turn on "
        "output.private to leave them out."
    )
    assert said in caplog.messages
    caplog.clear()
    output = replace(config.output, private=True)
    private = run(replace(config, base=public, dataset=dataset, output=output))[2].checkpoint
    assert said not in caplog.messages
    assert b"emma" in public.read_bytes()
    assert b"emma" not in private.read_bytes()


def test_the_global_random_generators_are_not_touched(config, prior):
    torch.manual_seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    run(replace(config, prior=replace(prior, images=(), num_images=2,
                                      sampling=SamplingConfig(steps=2))))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()


def test_gradient_accumulation_equals_a_larger_batch(config, prior):
    config = replace(config, prior=prior, steps=2)
    large = run(replace(config, batch_size=4))
    small = run(replace(config, batch_size=1, gradient_accumulation=4))
    assert small[0] == pytest.approx(large[0], rel=1e-5)
    for report, other in zip(large[2].reports, small[2].reports, strict=True):
        assert other.grad_norm == pytest.approx(report.grad_norm, rel=1e-4)


def test_the_reported_losses_add_up(config, prior):
    _, _, result = run(replace(config, prior=prior))
    assert len(result.reports) == 4
    for report in result.reports:
        total = report.instance_loss + prior.weight * report.prior_loss
        assert report.loss == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_every_optimizer_trains_every_part(config, name, train_text_encoder):
    optimizer = OptimizerConfig(name=name, learning_rate=1.0 if name == "Prodigy" else 1e-3)
    config = replace(config, optimizer=optimizer, steps=3)
    _, _, result = run(config, train_text_encoder=train_text_encoder)
    # In the token embeddings, only the words of the captions have gradients.
    assert result.moved["unet"][1] > 0.5
    assert set(result.moved) == ({"unet", "text_encoder"} if train_text_encoder else {"unet"})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_low_precision_is_close_to_fp32_and_keeps_fp32_weights(config, precision):
    exact, rough = run(config), run(replace(config, precision=precision))
    assert rough[0] == pytest.approx(exact[0], rel=0.05)
    name = "model.diffusion_model.out.2.weight"
    weights = rough[1][name]
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.bfloat16().float())


@pytest.mark.parametrize("method", [
    LoRA(rank=4, conv_rank=2, dora=True, train_text_encoder=True),
    TextualInversion(placeholder="<dog>", initializer="dog", templates="captions"),
])  # fmt: skip
def test_a_frozen_model_in_8_bits_trains_and_draws_nearly_the_same(config, prior, method):
    is_lora = isinstance(method, LoRA)
    config = replace(
        config,
        prior=prior if is_lora else PriorConfig(),
        dataset=replace(config.dataset, prompt="a photo of <dog>"),
        preview=PreviewConfig(prompts=("a dog",), every=4, sampling=SamplingConfig(steps=2)),
    )
    drawn, losses = [], []
    for format in ("precision", "8 bit"):
        observer = Previews()
        result = train(
            config.replace({"frozen_weights": format}), method, device=CPU, observer=observer
        )
        losses.append([report.loss for report in result.reports])
        drawn.append(observer.images[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]
    assert np.abs(drawn[1].astype(float) - drawn[0]).mean() < 8


def test_gradient_checkpointing_computes_the_same(config):
    plain = run(config, train_text_encoder=True)
    saving = run(replace(config, gradient_checkpointing=True), train_text_encoder=True)
    assert saving[0] == pytest.approx(plain[0], rel=1e-5)


def test_channels_last_computes_the_same(config):
    assert run(replace(config, channels_last=True))[0] == pytest.approx(run(config)[0], rel=1e-4)


def test_the_unet_is_compiled_if_configured(config):
    # With a backend that does not exist, compiled code fails and all other code runs.
    with torch.compiler.set_stance(force_backend="none"):
        run(replace(config, steps=1))
        with pytest.raises(ValueError, match="torch.compile failed: Invalid backend: 'none'"):
            run(replace(config, steps=1, compile=True))


def test_min_snr_lowers_the_loss_and_noise_offset_changes_it(config):
    plain = run(config)[0]
    weighted = run(replace(config, min_snr_gamma=1.0))[0]
    assert sum(weighted) < sum(plain)
    assert run(replace(config, noise_offset=0.3))[0] != pytest.approx(plain, rel=1e-3)


def test_the_average_is_saved_and_does_not_affect_training(config):
    plain, averaged = run(config), run(replace(config, ema=True, ema_decay=0.5))
    assert averaged[0] == plain[0]
    name = "model.diffusion_model.out.2.bias"
    base = load_file(config.base)[name].float()
    assert 0 < (averaged[1][name] - base).norm() < (plain[1][name] - base).norm()


def test_training_of_the_text_encoder_stops_at_its_step(config):
    whole = run(config, train_text_encoder=True)
    stopped = run(config, train_text_encoder=True, text_encoder_stop_step=2)
    two_steps = run(replace(config, steps=2), train_text_encoder=True)
    assert stopped[2].reports[1].learning_rates["text_encoder"] > 0
    assert stopped[2].reports[2].learning_rates["text_encoder"] == 0
    text = [name for name in whole[1] if part_of(name) == "text_encoder"]
    assert all(torch.equal(stopped[1][name], two_steps[1][name]) for name in text)
    assert not all(torch.equal(stopped[1][name], whole[1][name]) for name in text)


def test_photos_of_several_shapes_train_in_buckets(config, tmp_path):
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(96, 48), (48, 96)]):
        pixels = rng.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(config.dataset.photos[0] / f"wide{number}.png")
    bucketed = replace(config.dataset, buckets=True, resolution=32)
    losses, _, _ = run(replace(config, dataset=bucketed, batch_size=5))
    assert len(losses) == 4
    assert all(0 < loss < 10 for loss in losses)


def test_class_images_can_be_listed_individually(config, prior):
    files = tuple(sorted(prior.images[0].iterdir()))
    losses, tensors, _ = run(replace(config, prior=prior))
    by_name, same_tensors, _ = run(replace(config, prior=replace(prior, images=files)))
    assert losses == by_name
    assert same(tensors, same_tensors)
    _, _, result = run(replace(config, prior=replace(prior, images=files[:2])))
    with safe_open(result.checkpoint, framework="pt") as file:
        assert file.metadata()["ss_num_reg_images"] == "2"


def test_steps_previews_and_class_images_use_the_configured_precision_and_resolution(
    config, monkeypatch
):
    predict, found = SD1.predict, []

    def watch(*arguments: object) -> torch.Tensor:
        found.append((prediction := predict(*arguments)).dtype)
        return prediction

    monkeypatch.setattr(SD1, "predict", watch)
    sampling = SamplingConfig(steps=1, guidance_scale=1)
    prior = PriorConfig(weight=1.0, prompt="a dog", num_images=2, sampling=sampling)
    preview = PreviewConfig(prompts=("a dog",), every=1, sampling=sampling)
    dataset = replace(config.dataset, resolution=24)  # the native resolution is 16
    config = replace(config, dataset=dataset, precision="bf16", steps=1)
    run(replace(config, prior=prior, preview=preview))
    assert found == [torch.bfloat16] * 4, "class images, a base preview, a step, a preview"
    made = list(config.output.folder.glob("class_images/*/*.png"))
    assert len(made) == 2
    for path in made:
        with Image.open(path) as image:
            assert image.size == (24, 24)


def test_mirror_doubles_the_photos(config):
    mirrored = replace(config.dataset, mirror=True)
    for dataset, count in ((config.dataset, "3"), (mirrored, "6")):
        _, _, result = run(replace(config, steps=1, dataset=dataset))
        with safe_open(result.checkpoint, framework="pt") as file:
            assert file.metadata()["ss_num_train_images"] == count


def test_the_seed_decides_random_crops(config, prior, monkeypatch):
    """The crops of photos and class images are read before a batch is drawn."""
    for folder in (config.dataset.photos[0], prior.images[0]):
        for number, path in enumerate(folder.iterdir()):
            Image.new("RGB", (640, 32), (number, len(folder.name), 0)).save(path)
    crops = []

    class Watching(BatchStream):
        def __init__(self, *images: dict | TrainingConfig, **options: int) -> None:
            crops.append([latents.framing.crop for part in images[:2] for latents in part.values()])
            super().__init__(*images, **options)

    monkeypatch.setattr("trainer.loop.BatchStream", Watching)
    dataset = replace(config.dataset, crop="random")
    for seed in (0, 1, 0):
        run(replace(config, dataset=dataset, prior=prior, steps=1, seed=seed))
    assert crops[0] == crops[2]
    assert crops[0][:3] != crops[1][:3], "photos"
    assert crops[0][3:] != crops[1][3:], "class images"


def test_the_file_describes_its_run(config, prior):
    _, _, result = run(replace(config, prior=prior))
    with safe_open(result.checkpoint, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.sai_model_spec"] == "1.0.1"
    assert metadata["ss_steps"] == "4"
    assert metadata["dreambooth.constants"] == '{"resolution": 16}'
    assert json.loads(metadata["dreambooth.config"])["prior"]["weight"] == 0.5
    images = json.loads(metadata["dreambooth.images"])
    assert sum(image["is_class_image"] for image in images) == 4
    assert len(images) == 7
    assert len(json.loads(metadata["dreambooth.losses"])) == 4
    assert str(config.output.folder) not in "".join(metadata.values())


def test_a_loss_that_is_nan_or_infinite_stops_the_run(config, caplog):
    config = replace(config, optimizer=OptimizerConfig(learning_rate=1e30), steps=20)
    with pytest.raises(FloatingPointError) as caught:
        run(config)
    message = str(caught.value)
    assert message.startswith(("The loss became", "The gradient became"))
    assert message.endswith(". Lower optimizer.learning_rate (now 1e+30).")


class Stopping(Observer):
    """Stops the run at step 3, as Cancel and Ctrl+C do."""

    def on_step(self, report):
        if report.step == 3:
            raise KeyboardInterrupt


def test_a_stopped_run_saves_its_last_step(config, caplog):
    caplog.set_level(logging.WARNING)
    with pytest.raises(KeyboardInterrupt):
        run(config, Stopping())
    kept = config.output.folder / "dog-step000003.safetensors"
    assert [path.name for path in config.output.folder.iterdir()] == [kept.name]
    assert caplog.messages[-1] == f"Saved the weights of step 3: {kept}"
    assert same(load_file(kept), run(replace(config, steps=3))[1])


def test_weights_of_an_incomplete_step_are_not_saved(config, monkeypatch):
    """Here the optimizer has changed them, but the average is not updated yet."""
    update = EMA.update

    def interrupt(ema: EMA) -> None:
        if ema.num_updates == 2:
            raise KeyboardInterrupt
        update(ema)

    monkeypatch.setattr(EMA, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(replace(config, ema=True))
    assert list(config.output.folder.iterdir()) == []


def test_truncated_captions_are_reported(config, caplog):
    dataset = replace(config.dataset, prompt=" ".join(["dog"] * 75) + " in snow")
    run(replace(config, dataset=dataset, steps=1))
    assert caplog.messages == [
        "The caption of '0.png' is longer than the text encoder can read. This end of it is "
        "ignored: 'in snow'. Shorten the caption."
    ]


def test_intermediate_checkpoints_are_announced_and_the_newest_kept(config):
    received = []

    class Receiver(Observer):
        def on_checkpoint(self, step, path):
            assert path.exists()
            received.append((step, path.name))

    output = replace(config.output, save_every=1, keep=2)
    run(replace(config, output=output), Receiver())
    assert received == [
        (1, "dog-step000001.safetensors"), (2, "dog-step000002.safetensors"),
        (3, "dog-step000003.safetensors"), (4, "dog-step000004.safetensors"),
        (4, "dog.safetensors"),
    ]  # fmt: skip
    assert sorted(path.name for path in config.output.folder.iterdir()) == [
        "dog-step000003.safetensors", "dog-step000004.safetensors", "dog.safetensors",
    ]  # fmt: skip


def test_unusable_settings_are_refused_before_the_model_is_read(config, tmp_path):
    missing = replace(config, base=tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="^optimizer.name must be one of"):
        run(replace(missing, optimizer=OptimizerConfig(name="SGD")))
    sampling = SamplingConfig(scheduler="Heun")
    with pytest.raises(ValueError, match="^scheduler must be one of DDIM, PNDM"):
        run(replace(missing, preview=PreviewConfig(prompts=("a",), sampling=sampling)))
    with pytest.raises(ValueError, match="^scheduler must be one of DDIM, PNDM"):
        run(replace(missing, prior=PriorConfig(sampling=sampling)))
    with pytest.raises(ValueError, match="^optimizer.warmup_steps is 4, but the run has only 4"):
        run(replace(missing, optimizer=OptimizerConfig(warmup_steps=4)))
    with pytest.raises(ValueError, match="^dataset.background must be a colour name"):
        run(replace(missing, dataset=replace(config.dataset, background="greenish")))
    with pytest.raises(ValueError, match="^precision is fp16, which needs gradient scaling"):
        train(replace(missing, precision="fp16"), FullFineTune(), device=torch.device("mps"))
    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        run(missing)


def test_a_name_with_subfolders_and_a_date_keeps_a_run_together(config, tmp_path, monkeypatch):
    """The stopped run is resumed, and found again, on other days."""
    output = replace(
        config.output, folder=tmp_path / "out", name="dogs/%date:yyyy%/my-dog", save_every=1, keep=1
    )
    config = replace(config, steps=3, output=output)

    class StopsAtStep2(Observer):
        def on_step(self, report):
            if report.step == 2:
                raise KeyboardInterrupt

    def run(**options):
        return train(config, FullFineTune(), device=CPU, runs=tmp_path / "runs", **options)

    with pytest.raises(KeyboardInterrupt):
        run(observer=StopsAtStep2())
    (manifest,) = tmp_path.glob("runs/*/manifest.json")
    content = json.loads(manifest.read_text("utf-8"))
    folder = tmp_path / "out" / "dogs" / "2001"
    (first,) = folder.parent.iterdir()
    assert [path.name for path in first.iterdir()] == ["my-dog-step000001.safetensors"]
    # As if it had been started and stopped in 2001.
    first.rename(folder)
    content["started"] = "2001-02-03T12:00:00+00:00"
    content["intermediate"] = [str(path) for path in folder.iterdir()]
    manifest.write_text(json.dumps(content), "utf-8")
    result = run()
    assert result.files["checkpoint"] == folder / "my-dog.safetensors"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["my-dog-step000003.safetensors", "my-dog.safetensors"]
    assert list(folder.parent.iterdir()) == [folder]
    with safe_open(result.files["checkpoint"], "pt") as file:
        assert file.metadata()["modelspec.title"] == "my-dog"
    assert run().reused
