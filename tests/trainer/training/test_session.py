"""One step's loss against the reference formula, worked out from the same draws."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainer import families
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing, ModelFamily
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.noise import NUM_TIMESTEPS
from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.sampling.sampler import sample
from trainer.settings.config import (
    DatasetConfig,
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)
from trainer.training.health import Health
from trainer.training.session import CaptionEncoder, Session

FRAMING = Framing((32, 32), (0, 0), (32, 32))


def latents(count: int, caption: str, *, is_prior: bool) -> dict[Example, CachedLatents]:
    generator = torch.Generator().manual_seed(int(is_prior))
    return {
        Example(Path(f"{n}.png"), (caption,), is_prior): CachedLatents(
            torch.randn(4, 8, 8, generator=generator), torch.full((4, 8, 8), 0.1), FRAMING
        )
        for n in range(count)
    }


def begin(
    model: ModelFamily,
    method: FullFineTune | TextualInversion | None = None,
    *,
    caption: str = "a sks dog",
    **changes: object,
) -> Session:
    """A session that has made no step, on three photos with one caption, and as many class images
    where their weight is above 0."""
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        batch_size=1,
    ).replace(changes)
    photos = latents(3, caption, is_prior=False)
    class_images = latents(3, "a dog", is_prior=True) if config.prior.weight else {}
    trainable = (method or FullFineTune()).attach(model, config, list(photos))
    return Session(config, model, trainable, BatchStream(photos, class_images, config))


@pytest.mark.parametrize("prior_weight", [0.0, 0.3, 1.0])
def test_the_loss_is_the_reference_scripts(tiny_model, prior_weight):
    """diffusers' DreamBooth script: prediction and target are chunked into photos and class images;
    mse(photos) + prior_loss_weight x mse(class images)."""
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
def reference_loss(model, stream: BatchStream, prior_weight: float) -> float:
    (batch,) = next(stream)
    alphas = model.schedule.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * batch.latents + (1 - alphas).sqrt() * batch.noise
    prediction = model.unet(
        noisy, batch.timesteps, model.encode_captions(batch.captions, batch.framings).hidden
    ).sample
    if prior_weight == 0:
        return F.mse_loss(prediction, batch.noise).item()
    photos, class_images = prediction.chunk(2)
    target, prior_target = batch.noise.chunk(2)
    prior_loss = F.mse_loss(class_images, prior_target)
    return (F.mse_loss(photos, target) + prior_weight * prior_loss).item()


def test_a_frozen_text_encoder_reads_each_caption_once(tiny_model):
    read = []
    encode = tiny_model.encode_captions
    tiny_model.encode_captions = lambda captions, framings: (
        read.extend(captions) or encode(captions, framings)
    )
    encoder = CaptionEncoder(tiny_model, frozen=True)
    for _ in range(3):
        given = encoder.encode(["a dog", "a cat", "a dog"], [FRAMING] * 3)
    assert sorted(read) == ["a cat", "a dog"]
    fresh = encode(["a dog", "a cat", "a dog"], [FRAMING] * 3)
    torch.testing.assert_close(given.hidden, fresh.hidden)


@pytest.mark.parametrize(("uses_framing", "times"), [(False, 1), (True, 2)])
def test_a_caption_is_read_again_only_for_a_framing_that_counts(
    tiny_model, monkeypatch, uses_framing, times
):
    read = []
    encode = tiny_model.encode_captions
    monkeypatch.setattr(type(tiny_model), "uses_framing", uses_framing)
    tiny_model.encode_captions = lambda captions, framings: (
        read.extend(captions) or encode(captions, framings)
    )
    other = Framing((64, 32), (0, 0), (32, 32))
    CaptionEncoder(tiny_model, frozen=True).encode(["a dog", "a dog"], [FRAMING, other])
    assert read == ["a dog"] * times


def overflow(model):
    """Let the gradients be infinite from now on; the handle's `remove` ends that."""
    return model.unet.conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))


def test_gradients_that_overflow_fp16_for_ever_end_the_run(tiny_model):
    session = begin(tiny_model, precision="fp16")
    before = tiny_model.unet.conv_out.weight.detach().clone()
    overflow(tiny_model)
    num_tries = int(math.log2(session.scaler.get_scale())) + 1
    assert [session.step() for _ in range(num_tries - 1)] == [None] * (num_tries - 1)
    with pytest.raises(FloatingPointError) as caught:
        session.step()
    assert str(caught.value) == (
        f"In fp16 the gradients of step 1 overflowed {num_tries} times in a row. Choose precision "
        "bf16 or fp32, or lower optimizer.learning_rate (now 0.0001)."
    )
    assert torch.equal(tiny_model.unet.conv_out.weight, before)


def test_a_step_that_fp16_skips_is_no_step(tiny_model):
    """Weights, average and learning rate stay where they were; only the images go on."""
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
def test_frozen_parts_are_held_as_they_are_computed_with(tiny_model, tiny_checkpoint, precision):
    """In half the memory, and with the very same results, to the bit."""
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
            given = model.encode_captions(["a <tok>", "a cat"], [FRAMING] * 2)
            predictions += [given.hidden, model.predict(noisy, times, given)]
    assert torch.equal(predictions[0], predictions[2])
    assert torch.equal(predictions[1], predictions[3])


def test_what_is_trained_stays_fp32(tiny_model):
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


def test_embeddings_keep_32_bit_states_under_8_bit_adamw(tiny_model):
    method = FullFineTune(train_text_encoder=True)
    session = begin(tiny_model, method, optimizer={"name": "AdamW8bit"})
    session.step()
    states = session.optimizer.state
    (table,) = tiny_model.token_tables().values()
    assert states[table.weight]["state1"].dtype == torch.float32
    assert states[tiny_model.unet.mid_block.resnets[0].conv1.weight]["state1"].dtype == torch.uint8


def test_every_timestep_of_the_schedule_and_no_other_is_drawn(tiny_model):
    config = begin(tiny_model).config
    stream = BatchStream(latents(3, "a", is_prior=False), {}, config, num_timesteps=4)
    drawn = {int(batch.timesteps) for _ in range(100) for batch in next(stream)}
    assert drawn == {0, 1, 2, 3}
    SamplingConfig(steps=NUM_TIMESTEPS)
    with pytest.raises(ValueError, match="steps must be between 1 and 1000, got 1001"):
        SamplingConfig(steps=NUM_TIMESTEPS + 1)


def test_a_session_broken_off_in_the_optimizer_is_not_whole(tiny_model):
    session = begin(tiny_model)
    session.step()
    assert session.is_whole

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    session.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.step()
    assert not session.is_whole
    assert len(session.reports) == 1


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e6])
def test_gradients_longer_than_the_limit_are_shortened_to_it(tiny_model, precision, limit):
    """As the optimizer receives them: AdamW's step itself hardly tells their length."""
    session = begin(tiny_model, precision=precision, optimizer={"max_grad_norm": limit})
    received = []

    def measure(*_: object) -> None:
        received.append(math.hypot(*(p.grad.norm().item() for p in session.parameters)))

    session.optimizer.register_step_pre_hook(measure)
    found = session.step().grad_norm
    assert 0.01 < found < 1e3, "the limits tried lie on both sides"
    assert received == [pytest.approx(1e-3 if limit == 1e-3 else found, rel=1e-3)]


@pytest.mark.parametrize(
    "method",
    [
        TextualInversion(placeholder="<tok>", initializer="dog", num_vectors=2),
        FullFineTune(train_embedding=True),
    ],
    ids=["textual inversion", "full"],
)
def test_a_learned_word_and_its_average_keep_to_the_lengths_of_words(tiny_model, method):
    """At a rate whose every step takes the vectors far beyond the longest word."""
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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_pulls_at_weights_but_not_at_learned_words(tiny_model, name):
    """A step without any slope shows the decay alone: it shrinks weights by rate times decay."""
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    session = begin(
        tiny_model,
        FullFineTune(train_embedding=True),
        caption="a photo of <tok>",
        optimizer={"name": name, "learning_rate": 0.1, "weight_decay": 0.5},
    )
    kernel = tiny_model.unet.conv_in.weight
    before = kernel.detach().clone()
    for parameter in session.parameters:
        parameter.grad = torch.zeros_like(parameter)
    session.optimizer.step()
    # Prodigy finds its rate by the slope, and has none yet.
    shrunk = before * (1 if name == "Prodigy" else 1 - 0.1 * 0.5)
    torch.testing.assert_close(kernel.detach(), shrunk)
    (vectors,) = tiny_model.learned_vectors["<tok>"].values()
    assert torch.equal(vectors.detach(), torch.ones(1, 24))


def test_previews_are_drawn_from_the_average_at_the_size_of_training(tiny_model):
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


def test_the_average_follows_as_slowly_as_configured(tiny_model):
    session = begin(tiny_model, ema=True, ema_decay=0.1, optimizer={"learning_rate": 1e-2})
    kernel = tiny_model.unet.conv_in.weight
    before = kernel.detach().clone()
    session.step()
    average = 0.1 * before + 0.9 * kernel.detach()
    with session.averaged():
        torch.testing.assert_close(kernel.detach(), average)


def test_previews_can_be_broken_off(tiny_model):
    class Cancelling(Observer):
        def on_progress(self, activity: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

    session = begin(tiny_model, ema=True)
    with pytest.raises(KeyboardInterrupt):
        session.draw(["a dog"], Cancelling())
    assert session.is_whole


def test_the_scale_of_the_loss_goes_on_where_it_stood(tiny_model, tiny_checkpoint):
    session = begin(tiny_model, precision="fp16")
    session.step()
    session.scaler.update(new_scale=512.0)
    other = begin(families.load(tiny_checkpoint, torch.device("cpu")), precision="fp16")
    other.load_state(session.state())
    assert other.scaler.get_scale() == 512
    assert other.scaler.state_dict() == session.scaler.state_dict()
    assert other.step().loss == session.step().loss


@pytest.mark.parametrize("frozen", [True, False])
def test_each_caption_has_its_own_encoding_in_every_batch(tiny_model, frozen):
    encoder = CaptionEncoder(tiny_model, frozen=frozen)
    for captions in (["a dog", "a cat"], ["a cat", "a bird", "a cat"], ["a bird", "a dog"]):
        framings = [Framing((32 + n, 32), (n, 0), (32, 32)) for n in range(len(captions))]
        given = encoder.encode(captions, framings)
        fresh = tiny_model.encode_captions(captions, framings)
        torch.testing.assert_close(given.hidden, fresh.hidden)


def test_a_text_encoder_in_training_reads_anew_at_every_step(tiny_model):
    encoder = CaptionEncoder(tiny_model, frozen=False)
    tiny_model.text_encoders.requires_grad_(True)
    before = encoder.encode(["a dog"], [FRAMING]).hidden
    assert before.requires_grad
    with torch.no_grad():
        # Unlike for each number of a vector: LayerNorm takes out what they share.
        tiny_model.token_tables()["clip_l"].weight.add_(torch.linspace(-1, 1, 24))
    after = encoder.encode(["a dog"], [FRAMING]).hidden
    assert (after - before).norm() > 0.1 * before.norm()


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weighs_each_photos_error_by_its_own_timestep(tiny_model, gamma):
    """arXiv 2303.09556: min(SNR, gamma) / SNR, where SNR is a / (1 - a)."""
    session = begin(tiny_model, batch_size=3, min_snr_gamma=gamma)
    (batch,) = next(BatchStream(latents(3, "a sks dog", is_prior=False), {}, session.config))
    alphas = tiny_model.schedule.alphas_cumprod[batch.timesteps]
    wide = alphas.view(-1, 1, 1, 1)
    given = tiny_model.encode_captions(batch.captions, batch.framings).hidden
    with torch.no_grad():
        noisy = wide.sqrt() * batch.latents + (1 - wide).sqrt() * batch.noise
        prediction = tiny_model.unet(noisy, batch.timesteps, given).sample
    losses = [
        F.mse_loss(one, noise).item() * min(1, gamma / (a / (1 - a)))
        for one, noise, a in zip(prediction, batch.noise, alphas.tolist(), strict=True)
    ]
    assert session.step().loss == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_each_part_learns_at_its_own_rate_at_each_step_until_it_stops(tiny_model):
    method = FullFineTune(
        train_text_encoder=True, text_encoder_learning_rate=3e-4, text_encoder_stop_step=4
    )
    rate = {"learning_rate": 1e-3, "lr_schedule": "linear", "warmup_steps": 2}
    session = begin(tiny_model, method, steps=6, optimizer=rate)
    used, lengths = [], []

    def look(*_: object) -> None:
        used.append([group["lr"] for group in session.optimizer.param_groups])
        lengths.append(
            [
                math.hypot(*(p.grad.norm().item() for p in part.parameters if p.grad is not None))
                for part in session.trainable.parts
            ]
        )

    session.optimizer.register_step_pre_hook(look)
    reports = [session.step() for _ in range(6)]
    shares = [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]
    unet = [1e-3 * share for share in shares]
    text_encoder = [*(3e-4 * share for share in shares[:4]), 0, 0]
    expected = list(zip(unet, text_encoder, strict=True))
    assert used == [pytest.approx(rates) for rates in expected]
    told = [tuple(report.learning_rates.values()) for report in reports]
    assert told == [pytest.approx(rates) for rates in expected]
    # A part that has stopped takes no share of the length that gradients may have.
    assert [length[1] > 0 for length in lengths] == [True] * 4 + [False] * 2


def test_speed_and_time_left_are_those_of_this_session(tiny_model, tiny_checkpoint, monkeypatch):
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


def test_the_losses_of_photos_alone_tell_of_health(tiny_model, monkeypatch):
    """Those of class images rise where the photos are learned well."""
    seen = []
    monkeypatch.setattr(Health, "look_at_losses", lambda self, losses: seen.append(list(losses)))
    session = begin(tiny_model, prior=PriorConfig(weight=2.0, prompt="a dog"))
    reports = [session.step() for _ in range(2)]
    losses = [report.instance_loss for report in reports]
    assert seen == [losses[:1], losses]
