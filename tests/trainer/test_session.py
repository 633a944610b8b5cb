"""One step's loss against the reference formula, worked out from the same draws."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from trainer.config import DatasetConfig, OptimizerConfig, PriorConfig, TrainingConfig
from trainer.data.batches import BatchStream
from trainer.data.examples import Example
from trainer.data.latents import CachedLatents
from trainer.families.base import Framing
from trainer.methods.full import FullFineTune
from trainer.session import CaptionEncoder, Session

FRAMING = Framing((32, 32), (0, 0), (32, 32))


def latents(count: int, caption: str, *, is_prior: bool) -> dict[Example, CachedLatents]:
    generator = torch.Generator().manual_seed(int(is_prior))
    return {
        Example(Path(f"{n}.png"), (caption,), is_prior): CachedLatents(
            torch.randn(4, 8, 8, generator=generator), torch.full((4, 8, 8), 0.1), FRAMING
        )
        for n in range(count)
    }


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


def test_gradients_that_overflow_fp16_for_ever_end_the_run(tiny_model):
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        precision="fp16",
        batch_size=1,
    )
    stream = BatchStream(latents(3, "a sks dog", is_prior=False), {}, config)
    session = Session(config, tiny_model, FullFineTune().attach(tiny_model, config, []), stream)
    before = tiny_model.unet.conv_out.weight.detach().clone()
    tiny_model.unet.conv_out.weight.register_hook(lambda gradient: gradient * float("inf"))
    num_steps = math.log2(session.scaler.get_scale()) + 1
    for _ in range(int(num_steps) - 1):
        session.step()
    with pytest.raises(FloatingPointError) as caught:
        session.step()
    assert str(caught.value) == (
        f"In fp16 the gradients were too large for each of the last {num_steps:g} steps up to step "
        f"{num_steps:g}, which were left out. Choose precision bf16 or fp32, or lower "
        "optimizer.learning_rate (now 0.0001)."
    )
    assert torch.equal(tiny_model.unet.conv_out.weight, before)


def test_a_session_broken_off_in_the_optimizer_is_not_whole(tiny_model):
    config = TrainingConfig(
        base=Path("unused"),
        dataset=DatasetConfig(photos=(Path("a"),), prompt="a"),
        optimizer=OptimizerConfig(learning_rate=1e-4),
        batch_size=1,
    )
    stream = BatchStream(latents(3, "a sks dog", is_prior=False), {}, config)
    session = Session(config, tiny_model, FullFineTune().attach(tiny_model, config, []), stream)
    session.step()
    assert session.is_whole

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    session.optimizer.register_step_post_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.step()
    assert not session.is_whole
    assert len(session.reports) == 1
