"""Training steps: the loss compared with the reference formula, skipped steps, states, previews and
reports."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.nn import functional as F

from tests.trainer.training.sessions import FRAMING, begin, latents, overflow
from trainer import families
from trainer.data.batches import BatchStream
from trainer.families.base import Framing
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.noise import NUM_TIMESTEPS, DiscreteNoise
from trainer.observer import Observer
from trainer.sampling.sampler import sample
from trainer.settings.config import (
    DatasetConfig,
    ModelOptions,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainer.training.health import Health
from trainer.training.session import Session


@pytest.mark.parametrize("prior_weight", [0.0, 0.3, 1.0])
def test_the_loss_equals_that_of_the_reference_script(tiny_model, prior_weight):
    """diffusers' DreamBooth script splits prediction and target into photos and class images, and
    computes the loss as mse(photos) + prior_loss_weight x mse(class images)."""
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        prior=PriorConfig(weight=prior_weight, prompt="a dog"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        batch_size=3,
    )
    instance = latents(3, "a sks dog", is_prior=False)
    prior = latents(3, "a dog", is_prior=True) if prior_weight else {}
    expected = reference_loss(tiny_model, BatchStream(instance, prior, config), prior_weight)
    trainable = FullFineTune().attach(tiny_model, config, [])
    report = Session(config, tiny_model, trainable, BatchStream(instance, prior, config)).step()
    assert report.loss == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def xl_reference_loss(model, stream: BatchStream) -> float:
    """As diffusers' training script for Stable Diffusion XL: the sizes of each image, the pooled
    text of the second encoder, and the mean squared error of epsilon or v."""
    (batch,) = next(stream)
    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="v_prediction" if model.noise.is_v_prediction else "epsilon",
    )  # fmt: skip
    noisy = scheduler.add_noise(batch.latents, batch.noise, batch.times)
    sizes = [
        (*each.original_size[::-1], *each.crop[::-1], *each.size[::-1]) for each in batch.framings
    ]
    ids = [encoder.tokenizer.encode(batch.captions) for encoder in model.encoders]
    first, second = model.text_encoders
    of_g = second(ids[1], output_hidden_states=True)
    hidden = torch.cat([first(ids[0]).last_hidden_state, of_g.hidden_states[-2]], dim=-1)
    added = {"text_embeds": of_g.text_embeds, "time_ids": torch.tensor(sizes)}
    prediction = model.unet(noisy, batch.times, hidden, added_cond_kwargs=added).sample
    target = batch.noise
    if model.noise.is_v_prediction:
        target = scheduler.get_velocity(batch.latents, batch.noise, batch.times)
    return F.mse_loss(prediction, target).item()


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_the_loss_of_xl_equals_that_of_the_reference_script(tiny_xl_checkpoint, prediction):
    options = ModelOptions(prediction_type=prediction)
    model = families.load(tiny_xl_checkpoint, torch.device("cpu"), options=options)
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        batch_size=3,
    )
    framings = [Framing((640, 480), (0, 9), (32, 32)), FRAMING, Framing((33, 90), (1, 0), (32, 32))]
    photos = latents(3, "a sks dog", is_prior=False)
    framed = {
        example: dataclasses.replace(each, framing=framing)
        for (example, each), framing in zip(photos.items(), framings, strict=True)
    }
    expected = xl_reference_loss(model, BatchStream(framed, {}, config))
    trainable = FullFineTune().attach(model, config, [])
    report = Session(config, model, trainable, BatchStream(framed, {}, config)).step()
    assert report.loss == pytest.approx(expected, rel=1e-5)


def test_a_model_trained_as_v_differs_from_one_trained_as_epsilon(tiny_xl_checkpoint):
    found = []
    for prediction in ("epsilon", "v", "v-zsnr"):
        options = ModelOptions(prediction_type=prediction)
        model = families.load(tiny_xl_checkpoint, torch.device("cpu"), options=options)
        begin(model).step()
        found.append(model.unet.conv_out.weight.detach().clone())
    epsilon, v, zero_snr = found
    assert not torch.equal(epsilon, v)
    assert not torch.equal(v, zero_snr)


def test_steps_keep_no_casts_of_the_weights_but_images_do(tiny_model):
    keeps_casts, predict = [], tiny_model.predict
    tiny_model.predict = lambda *inputs: (
        keeps_casts.append(torch.is_autocast_cache_enabled()) or predict(*inputs)
    )
    session = begin(tiny_model, precision="bf16")
    session.step()
    assert keeps_casts == [False]
    session.draw(["a dog"], Observer())
    assert all(keeps_casts[1:])
    assert len(keeps_casts) > 1


@torch.no_grad()
def reference_loss(model, stream: BatchStream, prior_weight: float) -> float:
    (batch,) = next(stream)
    alphas = model.noise.alphas_cumprod[batch.times].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
    prediction = model.unet(noisy, batch.times, model.encode_captions(batch.captions).hidden).sample
    if prior_weight == 0:
        return F.mse_loss(prediction, batch.noise).item()
    photos, class_images = prediction.chunk(2)
    target, prior_target = batch.noise.chunk(2)
    prior_loss = F.mse_loss(class_images, prior_target)
    return (F.mse_loss(photos, target) + prior_weight * prior_loss).item()


def masked(share: float) -> tuple[dict, torch.Tensor]:
    """Three photos, the first of which has a mask of 2x3 latents, with this weight elsewhere."""
    photos = latents(3, "a sks dog", is_prior=False)
    mask = torch.zeros(8, 8)
    mask[2:4, 3:6] = 1
    weights = mask + share * (1 - mask)
    first = next(iter(photos))
    photos[first] = dataclasses.replace(photos[first], weights=weights / weights.mean())
    return photos, mask


@pytest.mark.parametrize(
    "method",
    [FullFineTune(), LoRA(rank=2), TextualInversion(placeholder="<new>", initializer="dog")],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("share", [0, 0.25])
def test_nothing_is_learned_outside_a_mask(tiny_model, method, share):
    """The gradient with respect to what the model predicts is exactly 0 there; inside, and for
    photos and class images without a mask, it is that of the mean squared error."""
    prior = PriorConfig(weight=0.5, prompt="a dog")
    caption = "a <new>" if isinstance(method, TextualInversion) else "a sks dog"
    session = begin(tiny_model, method, caption=caption)
    photos, mask = masked(share)
    config = dataclasses.replace(session.config, prior=prior, batch_size=3)
    class_images = latents(3, "a dog", is_prior=True)
    (batch,) = next(BatchStream(photos, class_images, config))
    batch.captions[:3] = [caption] * 3
    predictions, predict = [], tiny_model.predict

    def watched(*inputs):
        predictions.append(predict(*inputs))
        predictions[-1].retain_grad()
        return predictions[-1]

    tiny_model.predict = watched
    losses = session._losses(batch)
    losses.sum().backward()
    (prediction,) = predictions
    gradient = prediction.grad
    for number in range(6):
        error = (prediction[number] - batch.noise[number]).detach()
        has_mask = bool((batch.place_weights[number] != 1).any())
        places = mask + share * (1 - mask) if has_mask else torch.ones(8, 8)
        factor = (0.5 if batch.is_prior[number] else 1) / 3
        expected = factor * (places * error.square()).sum() / (4 * places.sum())
        torch.testing.assert_close(losses[number].detach(), expected)
        torch.testing.assert_close(gradient[number], factor * 2 * places * error / 4 / places.sum())
        assert (gradient[number][:, mask == 0] == 0).all() == (has_mask and share == 0)
        assert (gradient[number][:, mask == 1] != 0).all()
    assert [bool((each != 1).any()) for each in batch.place_weights].count(True) == 1


def test_a_step_with_masks_is_the_same_in_one_pass_and_in_several(tiny_model, tiny_checkpoint):
    changed = []
    for batch_size, accumulation in ((3, 1), (1, 3)):
        model = families.load(tiny_checkpoint, torch.device("cpu"))
        changes = {"batch_size": batch_size, "gradient_accumulation": accumulation}
        session = begin(model, **changes)
        session.batches = BatchStream(masked(0)[0], {}, session.config)
        assert session.step().loss > 0
        changed.append(model.unet.conv_out.weight.detach().clone())
    torch.testing.assert_close(*changed)


def test_a_step_that_fp16_skips_does_not_count(tiny_model):
    """Weights, moving average and learning rate stay the same; only the images advance."""
    session = begin(tiny_model, precision="fp16", ema=True, optimizer={"warmup_steps": 3}, steps=9)
    for _ in range(2):
        assert session.step() is not None
    weights = [parameter.detach().clone() for parameter in session.parameters]
    averages = [average.clone() for average in session.ema.averages]
    handle = overflow(tiny_model)
    assert [session.step(), session.step()] == [None, None]
    handle.remove()
    assert session.is_whole
    assert all(map(torch.equal, session.parameters, weights))
    assert all(map(torch.equal, session.ema.averages, averages))
    assert session.ema.num_updates == 2
    report = session.step()
    assert (report.step, report.skipped_steps) == (3, 2)
    assert report.learning_rates["unet"] == pytest.approx(1e-4 * 3 / 4)
    assert math.isfinite(report.grad_norm)
    assert [each.step for each in session.reports] == [1, 2, 3]
    assert session.state()["skipped_steps"] == 2


def test_states_from_before_skipped_steps_were_counted_can_be_resumed(tiny_model, tiny_checkpoint):
    session = begin(tiny_model)
    session.step()
    state = session.state()
    del state["skipped_steps"]
    for report in state["reports"]:
        del report["skipped_steps"]
    again = begin(families.load(tiny_checkpoint, torch.device("cpu")))
    again.load_state(state)
    assert again.step().skipped_steps == 0


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_frozen_parts_are_stored_in_the_compute_format(tiny_model, tiny_checkpoint, precision):
    """This halves their memory, and the results stay identical to the bit."""
    plain = families.load(tiny_checkpoint, torch.device("cpu"))
    method = TextualInversion(placeholder="<tok>", initializer="dog", templates="captions")
    config = begin(tiny_model, method, caption="a <tok>", precision=precision).config
    method.attach(plain, config, [])
    expected = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert tiny_model.unet.conv_in.weight.dtype == expected
    noisy, times = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    predictions = []
    for model in (plain, tiny_model):
        with torch.no_grad(), torch.autocast("cpu", dtype=expected):
            given = model.encode_captions(["a <tok>", "a cat"])
            predictions += [given.hidden, model.predict(noisy, times, given)]
    assert torch.equal(predictions[0], predictions[2])
    assert torch.equal(predictions[1], predictions[3])


def test_trained_weights_stay_fp32(tiny_model):
    session = begin(tiny_model, FullFineTune(train_text_encoder=True), precision="bf16")
    assert {parameter.dtype for parameter in session.parameters} == {torch.float32}


def test_the_average_has_the_memory_format_of_the_weights(tiny_model):
    session = begin(tiny_model, ema=True, channels_last=True)
    pairs = [
        (parameter, average)
        for parameter, average in zip(session.parameters, session.ema.averages, strict=True)
        if parameter.ndim == 4 and not parameter.is_contiguous()
    ]
    assert len(pairs) > 10
    assert all(average.stride() == parameter.stride() for parameter, average in pairs)


def test_exactly_the_timesteps_of_the_schedule_are_drawn(tiny_model):
    config = begin(tiny_model).config
    stream = BatchStream(
        latents(3, "a", is_prior=False),
        {},
        config,
        noise=DiscreteNoise(torch.linspace(0.9, 0.1, 4)),
    )
    drawn = {int(batch.times) for _ in range(100) for batch in next(stream)}
    assert drawn == {0, 1, 2, 3}
    SamplingConfig(steps=NUM_TIMESTEPS)
    with pytest.raises(ValueError, match="steps must be between 1 and 1000, got 1001"):
        SamplingConfig(steps=NUM_TIMESTEPS + 1)


def test_a_session_interrupted_in_the_optimizer_is_not_whole(tiny_model):
    session = begin(tiny_model)
    session.step()
    assert session.is_whole

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    session.gradient_step.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.step()
    assert not session.is_whole
    assert len(session.reports) == 1


@pytest.mark.parametrize(
    "method",
    [
        TextualInversion(placeholder="<tok>", initializer="dog", num_vectors=2),
        FullFineTune(train_embedding=True),
    ],
    ids=["textual inversion", "full"],
)
def test_an_embedding_and_its_average_stay_within_the_vocabularys_lengths(tiny_model, method):
    """With a learning rate at which every step makes the vectors far too long."""
    if isinstance(method, FullFineTune):
        tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.zeros(1, 24)}))
    lengths = tiny_model.token_tables()["clip_l"].weight.norm(dim=1).numpy()
    session = begin(
        tiny_model, method, caption="a photo of <tok>", ema=True, optimizer={"learning_rate": 10.0}
    )
    (vectors,) = tiny_model.learned_vectors["<tok>"].values()
    longest = torch.full((len(vectors),), float(np.quantile(lengths, 0.99)))
    session.step()
    torch.testing.assert_close(vectors.detach().norm(dim=1), longest)
    with session.averaged():
        assert (vectors.norm(dim=1) <= 1.001 * longest).all()


def test_previews_use_the_moving_average_and_the_training_resolution(tiny_model):
    sampling = SamplingConfig(steps=2, seed=3)
    session = begin(
        tiny_model,
        ema=True,
        optimizer={"learning_rate": 1e-2},
        dataset={"resolution": 24},
        preview=PreviewConfig(sampling=sampling),
    )
    session.step()
    (preview,) = session.draw(["a sks dog"], Observer())
    weights = [parameter.detach().clone() for parameter in session.parameters]
    (of_the_weights,) = sample(tiny_model, ["a sks dog"], sampling, size=(24, 24))
    with torch.no_grad():
        for parameter, average in zip(session.parameters, session.ema.averages, strict=True):
            parameter.copy_(average)
    (of_the_average,) = sample(tiny_model, ["a sks dog"], sampling, size=(24, 24))
    assert np.array_equal(preview, of_the_average)
    assert not np.array_equal(preview, of_the_weights)
    assert not all(map(torch.equal, weights, session.ema.averages))


def test_the_moving_average_uses_the_configured_decay(tiny_model):
    session = begin(tiny_model, ema=True, ema_decay=0.1, optimizer={"learning_rate": 1e-2})
    kernel = tiny_model.unet.conv_in.weight
    before = kernel.detach().clone()
    session.step()
    average = 0.1 * before + 0.9 * kernel.detach()
    with session.averaged():
        torch.testing.assert_close(kernel.detach(), average)


def test_previews_can_be_interrupted(tiny_model):
    class Cancelling(Observer):
        def on_progress(self, activity: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

    session = begin(tiny_model, ema=True)
    with pytest.raises(KeyboardInterrupt):
        session.draw(["a dog"], Cancelling())
    assert session.is_whole


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_each_photos_error_by_its_own_timestep(tiny_model, gamma):
    """arXiv 2303.09556: min(SNR, gamma) / SNR, where SNR is a / (1 - a)."""
    session = begin(tiny_model, batch_size=3, min_snr_gamma=gamma)
    (batch,) = next(BatchStream(latents(3, "a sks dog", is_prior=False), {}, session.config))
    alphas = tiny_model.noise.alphas_cumprod[batch.times]
    wide = alphas.view(-1, 1, 1, 1)
    with tiny_model.on_device(tiny_model.text_encoders):
        given = tiny_model.encode_captions(batch.captions).hidden
    with torch.no_grad():
        noisy = wide.sqrt() * batch.latents + (1 - wide).sqrt() * batch.noise
        prediction = tiny_model.unet(noisy, batch.times, given).sample
    losses = [
        F.mse_loss(one, noise).item() * min(1, gamma / (a / (1 - a)))
        for one, noise, a in zip(prediction, batch.noise, alphas.tolist(), strict=True)
    ]
    assert session.step().loss == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_speed_and_remaining_time_count_only_the_steps_of_this_session(
    tiny_model, tiny_checkpoint, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr("trainer.training.session.time.monotonic", lambda: clock[0])
    session = begin(tiny_model, steps=10)
    for seconds in (2.0, 6.0):
        clock[0] = seconds
        report = session.step()
    assert (report.steps_per_second, report.seconds_left) == pytest.approx((2 / 6, 8 * 6 / 2))
    clock[0] = 1000.0
    other = begin(families.load(tiny_checkpoint, torch.device("cpu")), steps=10)
    other.load_state(session.state())
    clock[0] = 1004.0
    report = other.step()
    assert (report.steps_per_second, report.seconds_left) == pytest.approx((1 / 4, 7 * 4))


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_steps_and_previews_are_computed_in_the_chosen_format(tiny_model, precision):
    found = set()
    for part in tiny_model.parts().values():
        layer = [module for module in part.modules() if isinstance(module, nn.Linear)][-1]
        layer.register_forward_hook(lambda _, args, output: found.add(output.dtype))
    preview = PreviewConfig(sampling=SamplingConfig(steps=1))
    session = begin(tiny_model, precision=precision, preview=preview)
    for compute in (session.step, lambda: session.draw(["a dog"], Observer())):
        found.clear()
        compute()
        assert found == {{"fp16": torch.float16, "bf16": torch.bfloat16}[precision]}


@pytest.mark.parametrize("option", ["gradient_checkpointing", "channels_last", None])
def test_a_session_prepares_the_model_as_configured(tiny_model, option):
    begin(tiny_model, **({option: True} if option else {}))
    kernel = tiny_model.unet.conv_in.weight
    is_last = kernel.is_contiguous(memory_format=torch.channels_last)
    checkpoints = tiny_model.unet.is_gradient_checkpointing
    assert (checkpoints, is_last) == (option == "gradient_checkpointing", option == "channels_last")


def test_health_checks_only_the_losses_of_photos(tiny_model, monkeypatch):
    """Those of class images may rise in a healthy run."""
    seen = []
    monkeypatch.setattr(Health, "check_losses", lambda self, losses: seen.append(list(losses)))
    session = begin(tiny_model, prior=PriorConfig(weight=2.0, prompt="a dog"))
    reports = [session.step() for _ in range(2)]
    losses = [report.instance_loss for report in reports]
    assert seen == [losses[:1], losses]
