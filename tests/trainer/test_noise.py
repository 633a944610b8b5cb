"""The diffusion process, compared with diffusers' scheduler and with formulas written out."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from tests.trainer.fake_device import COPYING, DEVICE, fake_device
from trainer.noise import (
    DiscreteNoise,
    FlowNoise,
    draw_noise,
    min_snr_weights,
    squared_errors,
)

TIMESTEPS = torch.tensor([0, 17, 500, 999])


def pair(is_v_prediction: bool) -> tuple[DiscreteNoise, DDPMScheduler]:
    ours = DiscreteNoise.scaled_linear(0.00085, 0.012, is_v_prediction=is_v_prediction)
    theirs = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction" if is_v_prediction else "epsilon",
    )
    return ours, theirs


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=generator)
    return latents, noise


@pytest.mark.parametrize("is_v_prediction", [False, True])
def test_noisy_latents_and_target_equal_diffusers(is_v_prediction):
    ours, theirs = pair(is_v_prediction)
    latents, noise = tensors()
    torch.testing.assert_close(
        ours.add_noise(latents, noise, TIMESTEPS), theirs.add_noise(latents, noise, TIMESTEPS)
    )
    expected = theirs.get_velocity(latents, noise, TIMESTEPS) if is_v_prediction else noise
    torch.testing.assert_close(ours.target(latents, noise, TIMESTEPS), expected)


def test_min_snr_weights_each_example_by_its_timestep():
    schedule, _ = pair(False)
    alphas = schedule.alphas_cumprod.double()
    expected = []
    for timestep in TIMESTEPS.tolist():
        snr = (alphas[timestep] / (1 - alphas[timestep])).item()
        expected.append(min(snr, 5.0) / snr)
    actual = min_snr_weights(schedule, TIMESTEPS, 5.0)
    assert actual.tolist() == pytest.approx(expected, rel=1e-4)
    assert actual[0] < 0.01
    assert actual[-1] == 1


def test_min_snr_with_v_prediction_divides_by_snr_plus_one():
    schedule, _ = pair(True)
    snr = schedule.snr(TIMESTEPS)
    expected = torch.minimum(snr, torch.tensor(5.0)) / (snr + 1)
    torch.testing.assert_close(min_snr_weights(schedule, TIMESTEPS, 5.0), expected)


def test_noise_offset_shifts_whole_channels():
    plain = draw_noise((4, 64, 64), 0.0, torch.Generator().manual_seed(0))
    shifted = draw_noise((4, 64, 64), 0.5, torch.Generator().manual_seed(0))
    shift = shifted - plain
    torch.testing.assert_close(shift, shift[:, :1, :1].expand_as(shift), atol=1e-5, rtol=0)
    assert shift[:, 0, 0].std() > 0.05


def test_squared_errors_are_per_example_and_fp32():
    prediction = torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float16).view(2, 2, 1, 1)
    target = torch.tensor([[0.0, 0.0], [3.0, 1.0]]).view(2, 2, 1, 1)
    errors = squared_errors(prediction, target)
    assert errors.dtype == torch.float32
    assert errors.tolist() == [2.5, 5.0]


def test_weights_of_places_are_those_of_a_weighted_mean():
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 4, 4, 5, generator=generator)
    mask = torch.rand(3, 1, 4, 5, generator=generator).round()
    mask[0] = 1
    found = squared_errors(prediction, target, mask / mask.mean((1, 2, 3), keepdim=True))
    for number in range(3):
        inside = mask[number].bool().expand(4, 4, 5)
        expected = ((prediction - target)[number][inside] ** 2).mean()
        torch.testing.assert_close(found[number], expected)
    torch.testing.assert_close(found[0], squared_errors(prediction, target)[0])


def test_the_schedule_is_copied_to_a_device_once():
    schedule = pair(True)[0]
    latents, noise = tensors()
    expected = schedule.target(latents, noise, TIMESTEPS)
    with fake_device() as computed:
        latents, noise, timesteps = (t.to(DEVICE) for t in (latents, noise, TIMESTEPS))
        copies = [sum(computed[copying] for copying in COPYING)]
        for _ in range(2):
            schedule.add_noise(latents, noise, timesteps)
            found = schedule.target(latents, noise, timesteps)
            min_snr_weights(schedule, timesteps, 5.0)
            copies.append(sum(computed[copying] for copying in COPYING))
        assert copies == [copies[0], copies[0] + 1, copies[0] + 1]
        assert torch.equal(found.cpu(), expected)


# --- Zero terminal SNR --------------------------------------------------------------------------


def zero_snr() -> DiscreteNoise:
    return DiscreteNoise.scaled_linear(
        0.00085, 0.012, is_v_prediction=True, has_zero_terminal_snr=True
    )


def test_zero_terminal_snr_is_that_of_diffusers():
    theirs = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    found = zero_snr().alphas_cumprod
    torch.testing.assert_close(found, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)
    usual = pair(True)[0].alphas_cumprod
    assert found[0] == usual[0]
    assert found[-1] == 0
    assert zero_snr().has_zero_terminal_snr
    assert not pair(True)[0].has_zero_terminal_snr


def test_at_the_end_of_zero_terminal_snr_only_noise_is_left_and_the_image_is_asked_for():
    latents, noise = tensors()
    last = torch.full((4,), 999)
    process = zero_snr()
    assert torch.equal(process.add_noise(latents, noise, last), noise)
    assert torch.equal(process.target(latents, noise, last), -latents)
    assert min_snr_weights(process, last, 5.0).tolist() == [0] * 4


# --- Rectified flow -----------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_is_that_of_diffusers(shift):
    """`scale_noise` of its scheduler, and the target of its training scripts: noise - latents."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    process, (latents, noise) = FlowNoise(shift), tensors()
    indices = torch.tensor([0, 300, 700, 999])
    timesteps, sigmas = theirs.timesteps[indices], theirs.sigmas[indices]
    torch.testing.assert_close(
        process.add_noise(latents, noise, sigmas),
        theirs.scale_noise(latents, timesteps, noise),
    )
    torch.testing.assert_close(process.target(latents, noise, sigmas), noise - latents)
    assert process.prediction == "flow"


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 2, 8, 8)])
def test_processes_take_latents_of_any_number_of_dimensions(shape):
    latents, noise = torch.randn(2, *shape)
    for process, times in ((FlowNoise(3.0), torch.rand(3)), (zero_snr(), TIMESTEPS[:3])):
        whole = process.add_noise(latents, noise, times)
        for n in range(3):
            one = process.add_noise(latents[n, None], noise[n, None], times[n, None])
            assert torch.equal(whole[n], one[0])
        assert process.target(latents, noise, times).shape == shape


def test_the_times_of_flow_are_those_of_diffusers():
    """The density `logit_normal` of its training scripts, whose sigmas are shifted in the same way.
    Compared by quantiles of 100,000 draws."""
    from diffusers.training_utils import compute_density_for_timestep_sampling

    theirs = compute_density_for_timestep_sampling(
        "logit_normal", 100_000, logit_mean=0.0, logit_std=1.0,
        generator=torch.Generator().manual_seed(2),
    )  # fmt: skip
    theirs = 3 * theirs / (1 + 2 * theirs)
    ours = FlowNoise(3.0).draw_times(100_000, torch.Generator().manual_seed(1))
    shares = torch.linspace(0.01, 0.99, 20)
    torch.testing.assert_close(ours.quantile(shares), theirs.quantile(shares), atol=0.01, rtol=0)


def test_min_snr_of_flow_weighs_errors_of_the_latents():
    """An error e of the predicted direction is one of t e in the latents, whose square min-SNR
    multiplies by min(SNR, gamma)."""
    times = torch.tensor([0.1, 0.5, 0.9])
    snr = ((1 - times) / times) ** 2
    expected = snr.clamp(max=5.0) * times**2
    torch.testing.assert_close(min_snr_weights(FlowNoise(), times, 5.0), expected)
