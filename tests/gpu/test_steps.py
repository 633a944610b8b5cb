"""Training steps on a CUDA device compute the same as on the CPU."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from trainer import precision
from trainer.observer import Observer
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.settings.config import OptimizerConfig

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
TOLERANCES = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 1e-2}
"""Relative tolerance of each loss, compared with the CPU in fp32."""
UNET = "model.diffusion_model."


def losses(result) -> list[float]:
    return [report.loss for report in result.reports]


@pytest.mark.parametrize("name", TOLERANCES)
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_losses_match_those_of_the_cpu(config, prior, run, device, name, train_text_encoder):
    config = replace(config, prior=prior)
    expected = run(config, CPU, train_text_encoder=train_text_encoder)
    found = run(replace(config, precision=name), device, train_text_encoder=train_text_encoder)
    assert losses(found) == pytest.approx(losses(expected), rel=TOLERANCES[name])
    for report, other in zip(found.reports, expected.reports, strict=True):
        assert report.grad_norm == pytest.approx(other.grad_norm, rel=10 * TOLERANCES[name])
    assert found.moved.keys() == expected.moved.keys()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_trained_weights_stay_fp32(config, run, device, name):
    result = run(replace(config, precision=name), device)
    weights = load_file(result.checkpoint)[f"{UNET}out.2.weight"]
    assert weights.dtype == torch.float32
    assert not torch.equal(weights, weights.to(precision.DTYPES[name]).float())


def test_bf16_is_refused_on_a_card_without_it(device):
    if torch.cuda.get_device_capability(device) >= (8, 0):
        pytest.skip("this card computes in bf16")
    with pytest.raises(ValueError, match=r"^precision is bf16, but .* Choose precision fp16\.$"):
        precision.check("bf16", device)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_trains_as_on_the_cpu(config, run, device, exact, name):
    rate = 1.0 if name == "Prodigy" else 1e-3
    config = replace(config, optimizer=OptimizerConfig(name=name, learning_rate=rate))
    expected, found = run(config, CPU), run(config, device)
    assert losses(found) == pytest.approx(losses(expected), rel=1e-2)
    assert found.moved["unet"] == pytest.approx(expected.moved["unet"], rel=0.05)


def test_8_bit_adamw_keeps_its_states_in_8_bits_on_the_device(config, open_session, device):
    optimizer = OptimizerConfig(name="AdamW8bit", learning_rate=1e-3)
    session = open_session(replace(config, optimizer=optimizer), device)
    session.step()
    # bitsandbytes keeps the states of smaller weights in 32 bits.
    large = [weights for weights in session.parameters if weights.numel() >= 4096]
    assert len(large) > 10
    for weights in large:
        for name in ("state1", "state2"):
            state = session.gradient_step.optimizer.state[weights][name]
            assert (state.dtype, state.device) == (torch.uint8, weights.device)


@pytest.mark.parametrize("option", ["channels_last", "gradient_checkpointing"])
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_options_that_save_time_or_memory_compute_the_same(
    config, run, device, exact, option, name
):
    config = replace(config, precision=name)
    plain = run(config, device, train_text_encoder=True)
    other = run(replace(config, **{option: True}), device, train_text_encoder=True)
    tolerance = 1e-3 if name == "fp32" else TOLERANCES[name]
    assert losses(other) == pytest.approx(losses(plain), rel=tolerance)


def test_the_checkpoint_matches_the_one_that_the_cpu_writes(config, prior, run, device, exact):
    """With everything that affects one: text encoder, class images, moving average."""
    config = replace(config, prior=prior, ema=True, ema_decay=0.5)
    files = [run(config, where, train_text_encoder=True).checkpoint for where in (CPU, device)]
    base, expected, found = map(load_file, [config.base, *files])
    assert list(found) == list(expected)
    trained = [name for name in base if not torch.equal(expected[name], base[name])]
    assert any(name.startswith(UNET) for name in trained)
    assert all(torch.equal(found[name], base[name]) for name in base if name not in trained)
    assert {name: found[name].dtype for name in found} == {n: t.dtype for n, t in expected.items()}
    error = norm([found[name] - expected[name] for name in trained])
    assert error < 0.05 * norm([expected[name] - base[name] for name in trained])


def norm(tensors: list[torch.Tensor]) -> float:
    """Return the norm of all tensors together."""
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


def test_batches_are_copied_without_waiting_for_the_device(config, open_session, device):
    session = open_session(config, device)
    (batch,) = next(session.batches)
    batch.to(device)  # the first call allocates pinned memory
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = batch.to(device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(moved.noise.cpu(), batch.noise)


@pytest.mark.parametrize("options", [{}, {"weights": "24 bit", "gradient_release": True}])
def test_a_step_waits_for_the_device_at_most_twice(config, open_session, device, options):
    optimizer = OptimizerConfig(name="AdamW8bit")
    session = open_session(
        replace(config, precision="bf16", optimizer=optimizer, **options), device
    )
    session.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            session.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([one for one in caught if "synchronizing" in str(one.message)]) <= 2


class Watching(Observer):
    """Records the peak memory in megabytes, as reported and as PyTorch counted it."""

    def on_step(self, report):
        self.peaks = report.peak_megabytes, torch.cuda.max_memory_allocated() / 2**20


def test_the_reported_peak_memory_is_that_of_this_run_alone(config, run, device):
    earlier = torch.empty(1 << 29, dtype=torch.uint8, device=device)
    del earlier
    watching = Watching()
    run(config, device, observer=watching)
    reported, counted = watching.peaks
    assert reported == pytest.approx(counted, rel=0.01)
    # The U-Net's weights, gradients and AdamW's two moments take 12 MB. Memory that was used before
    # the run does not count.
    assert 12 < reported < 512
