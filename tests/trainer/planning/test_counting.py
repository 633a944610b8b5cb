"""Counted passes: against real ones, and against the known figures of Stable Diffusion 1.5."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.random_networks import TINY
from trainer import precision
from trainer.families.compilation import enable_checkpointing
from trainer.families.shapes import SD15, NetworkShape
from trainer.planning import counting
from trainer.planning.counting import Pass, StorageCounter, count

CPU = torch.device("cpu")
UNET = NetworkShape.of("unet", {"attention_head_dim": 8, **TINY["unet"]})
SD15_PASS = Pass(SD15.unet, 64, on_cuda=False)


def counted_for_real(each: Pass, batch_size: int) -> int:
    """The peak bytes of activations of a pass with numbers."""
    network = each.network.build()
    if each.checkpointed:
        enable_checkpointing(network)
    inputs = torch.randn(batch_size, 4, each.side, each.side)
    hidden = torch.randn(batch_size, 77, each.network.option("cross_attention_dim"))
    counter = StorageCounter(network.parameters())
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(counter.note_gradient)
    with counter:
        with precision.autocast(each.precision, CPU):
            times = torch.zeros(batch_size, dtype=torch.long)
            found = network(inputs, times, hidden).sample
        found.float().square().mean().backward()
    return max(moment[counting.ACTIVATIONS] for moment in counter.moments)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_a_counted_pass_needs_what_a_real_one_does(checkpointed, name):
    each = Pass(UNET, 32, name, on_cuda=False, checkpointed=checkpointed)
    for batch_size in (1, 3):
        real = counted_for_real(each, batch_size)
        assert count(each).peak(batch_size) == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_proportional_to_the_batch(monkeypatch, checkpointed):
    each = Pass(UNET, 32, checkpointed=checkpointed)
    per_photo = []
    for batch_size in (1, 2, 5):
        monkeypatch.setattr(counting, "BATCH", batch_size)
        per_photo.append(counting._count(each).peak(1))
    assert per_photo == pytest.approx([per_photo[0]] * 3, rel=0.03)


def test_stable_diffusion_1_5_at_512_pixels():
    """In GB per photo, on the CPU, whose autocast leaves norms in bf16."""
    assert count(SD15_PASS).peak(1) / 1e9 == pytest.approx(0.956, abs=0.005)
    checkpointed = replace(SD15_PASS, checkpointed=True)
    assert count(checkpointed).peak(1) / 1e9 == pytest.approx(0.242, abs=0.002)
    assert count(checkpointed).gradients.max() == 4 * 859_520_964


def test_cuda_computes_norms_in_fp32():
    on_cpu, on_cuda = (count(Pass(UNET, 32, on_cuda=on_cuda)).peak(1) for on_cuda in (False, True))
    assert 1.2 < on_cuda / on_cpu < 1.5
    in_fp32 = [count(Pass(UNET, 32, "fp32", on_cuda=on_cuda)).peak(1) for on_cuda in (False, True)]
    assert in_fp32[0] == in_fp32[1]


def test_every_gradient_arrives_once_in_full():
    trace = count(Pass(UNET, 32))
    sizes = sorted(p.numel() for p in UNET.parameters())
    assert sorted(trace.arrived[trace.arrived > 0]) == sizes
    assert trace.gradients[-1] == 4 * sum(sizes)
    assert not trace.arrived[: trace.backward].any()


def test_copies_of_fp32_weights_are_counted_apart():
    trace = count(Pass(UNET, 32))
    layers = [m for m in UNET.build().modules() if isinstance(m, precision.CAST_BY_AUTOCAST)]
    every = sum(2 * p.numel() for m in layers for p in m.parameters())
    assert 0.95 * every < trace.copies.max() < every, "those of biases are not kept"
    assert trace.copies[-1] == 0
    assert count(Pass(UNET, 32, checkpointed=True)).copies.max() < 0.5 * every
    assert not count(Pass(UNET, 32, "fp32")).copies.any()


def test_a_frozen_network_needs_no_gradients_of_weights():
    trained = count(Pass(UNET, 32))
    frozen = count(Pass(UNET, 32, trained=False, text_gradients=True))
    assert not frozen.gradients.any()
    assert not frozen.copies.any()
    assert frozen.peak(1) < trained.peak(1)


def test_drawing_needs_less_than_training():
    training, drawing = (count(Pass(UNET, 32, forward_only=f)) for f in (False, True))
    assert drawing.peak(1) < training.peak(1) / 4
    assert drawing.backward == len(drawing.activations)


def test_a_vae_needs_memory_in_proportion_to_the_image():
    vae = NetworkShape.of("vae", {**TINY["vae"], "latent_channels": 4})
    encoding = [count(Pass(vae, side, forward_only=True)).peak(1) for side in (32, 64)]
    decoding = count(Pass(vae, 32, forward_only=True, decodes=True)).peak(1)
    assert encoding[1] == pytest.approx(4 * encoding[0], rel=0.1)
    assert 0.5 < decoding / encoding[1] < 3


def test_checkpointing_a_text_encoder_saves_memory():
    clip = NetworkShape.of("text_encoder", {**TINY["text_encoder"], "num_hidden_layers": 8})
    stored, recomputed = (count(Pass(clip, 0, checkpointed=each)) for each in (False, True))
    assert recomputed.peak(8) < stored.peak(8) / 2


def test_counting_draws_no_random_numbers_and_leaves_no_memory():
    before = torch.get_rng_state()
    trace = counting._count(Pass(UNET, 32))
    assert torch.equal(torch.get_rng_state(), before)
    assert trace.activations[-1] < trace.peak(1) / 100
