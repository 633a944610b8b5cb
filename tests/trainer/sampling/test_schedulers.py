import sys

import pytest
import torch
from torch import Tensor

from trainer.noise import DiscreteNoise, FlowNoise
from trainer.sampling import schedulers
from trainer.sampling.schedulers import SCHEDULERS

SCHEDULE = DiscreteNoise.scaled_linear(0.00085, 0.012)
VELOCITY = DiscreteNoise(SCHEDULE.alphas_cumprod, is_v_prediction=True)
ZERO_SNR = DiscreteNoise.scaled_linear(
    0.00085, 0.012, is_v_prediction=True, has_zero_terminal_snr=True
)
NAMES = ["DDIM", "PNDM", "LMSDiscrete", "Euler", "Euler ancestral"]
NAMES += ["DPM++ 2M", "DPM++ 2M Karras", "UniPC", "DDPM"]
MEAN = 0.6


def best_prediction(latents: Tensor, timestep: Tensor, schedule: DiscreteNoise) -> Tensor:
    """The prediction of a perfect model for data drawn from N(MEAN, 1): the conditional mean of the
    noise (two joint Gaussians) or of the velocity. Timesteps may be fractional."""
    log_alphas = schedule.alphas_cumprod.clamp(min=schedulers.MIN_SIGNAL).log()
    low = int(timestep)
    high = min(low + 1, len(log_alphas) - 1)
    alpha = torch.lerp(log_alphas[low], log_alphas[high], float(timestep) - low).exp()
    noise = (1 - alpha).sqrt() * (latents - alpha.sqrt() * MEAN)
    data = MEAN + alpha.sqrt() * (latents - alpha.sqrt() * MEAN)
    if schedule.is_v_prediction:
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * data
    return noise


def draw(name: str, schedule: DiscreteNoise, steps: int) -> Tensor:
    """4096 values drawn with a perfect model, as four images with different seeds."""
    scheduler = schedulers.build(name, schedule, steps)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    latents = torch.stack([torch.randn((1, 32, 32), generator=one) for one in generators])
    latents = latents * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        noisy_latents = scheduler.scale_model_input(latents, timestep)
        prediction = best_prediction(noisy_latents, timestep, schedule)
        latents = schedulers.step(
            scheduler, prediction, timestep=timestep, latents=latents, generators=generators
        )
    return latents


def test_the_menu_and_its_order():
    assert list(SCHEDULERS) == NAMES


@pytest.mark.parametrize(
    "schedule", [SCHEDULE, VELOCITY, ZERO_SNR], ids=["noise", "velocity", "zero SNR"]
)
@pytest.mark.parametrize("name", NAMES)
def test_fifty_steps_of_a_perfect_model_draw_its_data(name: str, schedule: DiscreteNoise):
    latents = draw(name, schedule, 50)
    assert latents.mean() == pytest.approx(MEAN, abs=0.05)
    assert latents.std() == pytest.approx(1, abs=0.07)


@pytest.mark.parametrize("name", NAMES)
def test_a_thousand_steps_of_a_perfect_model_draw_its_data(name: str):
    latents = draw(name, SCHEDULE, 1000)
    assert latents.mean() == pytest.approx(MEAN, abs=0.03)
    assert latents.std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_one_step_produces_the_mean_of_the_data_instead_of_noise(name: str):
    latents = draw(name, SCHEDULE, 1)
    assert latents.mean() == pytest.approx(MEAN, abs=0.01)
    assert latents.std() < 0.11


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_produce_values_in_the_range_of_the_data(name: str):
    assert draw(name, SCHEDULE, 2).abs().max() < 10


@pytest.mark.parametrize("name", NAMES)
def test_the_scheduler_uses_the_models_noise_schedule(name: str):
    own = DiscreteNoise(torch.linspace(0.99, 0.01, 500))
    scheduler = schedulers.build(name, own, 20)
    assert torch.allclose(scheduler.alphas_cumprod, own.alphas_cumprod, rtol=1e-5)
    assert scheduler.timesteps.max() <= 499


@pytest.mark.parametrize("name", ["DDIM", "PNDM", "LMSDiscrete", "Euler", "UniPC", "DDPM"])
def test_timesteps_equal_those_of_stable_diffusion_1s_scheduler_configuration(name: str):
    import diffusers

    file = {
        "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "trained_betas": None, "skip_prk_steps": True,
        "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
    }  # fmt: skip
    original = diffusers.PNDMScheduler.from_config(file)
    theirs = getattr(diffusers, SCHEDULERS[name].class_name).from_config(original.config)
    for steps in (7, 30, 50):
        theirs.set_timesteps(steps)
        ours = schedulers.build(name, SCHEDULE, steps)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert float(ours.init_noise_sigma) == pytest.approx(float(theirs.init_noise_sigma))
        if name in ("DDIM", "PNDM"):  # where their last step ends
            assert float(ours.final_alpha_cumprod) == pytest.approx(
                float(theirs.final_alpha_cumprod), abs=1e-6
            )


def test_only_the_karras_variant_spreads_noise_levels_by_its_formula():
    """arXiv 2206.00364, equation 5, with rho = 7, from the schedule's first to its last level."""
    alphas = SCHEDULE.alphas_cumprod.double()
    levels = ((1 - alphas) / alphas).sqrt()
    share = torch.linspace(0, 1, 12, dtype=torch.float64)
    least, most = levels.min() ** (1 / 7), levels.max() ** (1 / 7)
    expected = (most + share * (least - most)) ** 7
    karras, plain = (schedulers.build(f"DPM++ 2M{end}", SCHEDULE, 12) for end in (" Karras", ""))
    torch.testing.assert_close(karras.sigmas[:12].double(), expected, rtol=1e-4, atol=0)
    assert abs(plain.sigmas[6] / expected[6] - 1) > 0.2


def test_steps_that_start_below_full_noise_are_warned_about_once(
    caplog: pytest.LogCaptureFixture,
):
    schedulers._warn_of_low_start.cache_clear()  # other tests may have caused the same warnings
    for name, steps in [("DDIM", 50), ("DDIM", 1), ("DDIM", 1000), ("Euler", 600), ("DDIM", 300)]:
        schedulers.build(name, SCHEDULE, steps)
    assert caplog.messages == []
    for name, steps in [("DDIM", 600), ("PNDM", 4), ("DDIM", 600)]:
        schedulers.build(name, SCHEDULE, steps)
    assert caplog.messages == [
        "DDIM with 600 steps starts at timestep 600 of 1000, so images may come out pale. Choose "
        "500 or 1000 steps, or a scheduler that spreads any number of steps evenly, such as Euler "
        "or DPM++ 2M.",
        "PNDM with 4 steps starts at timestep 751 of 1000, so images may come out pale. Choose 10 "
        "steps, or a scheduler that spreads any number of steps evenly, such as Euler or DPM++ 2M.",
    ]
    # The warning is true: the mean of the data is missed by much more than with 500 steps.
    pale, full = draw("DDIM", SCHEDULE, 600).mean(), draw("DDIM", SCHEDULE, 500).mean()
    assert abs(pale - MEAN) > 5 * abs(full - MEAN)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="scheduler must be one of") as error:
        schedulers.build("Heun", SCHEDULE, 20)
    assert str(error.value) == (
        "scheduler must be one of DDIM, PNDM, LMSDiscrete, Euler, Euler ancestral, DPM++ 2M, DPM++ "
        "2M Karras, UniPC, DDPM, got 'Heun'."
    )


def test_lmsdiscrete_without_scipy_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy", None)  # Python then finds no such module.
    schedulers.check("DDIM")
    with pytest.raises(ValueError, match="scipy") as error:
        schedulers.check("LMSDiscrete")
    assert str(error.value) == (
        "The scheduler LMSDiscrete needs the package scipy, but it cannot be loaded (import of "
        f'scipy halted; None in sys.modules). Install it with \'"{sys.executable}" -m pip install '
        "scipy', or choose DDIM, PNDM, Euler, Euler ancestral, DPM++ 2M, DPM++ 2M Karras, UniPC or "
        "DDPM."
    )


@pytest.mark.parametrize("name", NAMES)
def test_with_zero_terminal_snr_drawing_starts_at_the_last_timestep(name: str):
    for steps in (7, 20):
        assert schedulers.build(name, ZERO_SNR, steps).timesteps[0] == 999


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_fifty_steps_of_a_perfect_flow_model_draw_its_data(shift: float):
    """For data from N(MEAN, 1) and the noisy latents x, the best prediction of noise - data."""
    process = FlowNoise(shift)
    scheduler = schedulers.build("Euler", process, 50)
    latents = torch.randn((1, 64, 64), generator=torch.Generator().manual_seed(1))
    latents = latents * schedulers.initial_scale(scheduler)
    assert 1 == scheduler.timesteps[0] > scheduler.timesteps[-1] > 0
    for share in scheduler.timesteps:
        surplus = schedulers.scale_input(scheduler, latents, share) - (1 - share) * MEAN
        prediction = (2 * share - 1) / (share**2 + (1 - share) ** 2) * surplus - MEAN
        latents = schedulers.step(
            scheduler, prediction, timestep=share, latents=latents, generators=[]
        )
    assert latents.mean() == pytest.approx(MEAN, abs=0.05)
    assert latents.std() == pytest.approx(1, abs=0.05)


def test_other_schedulers_are_refused_for_flow():
    with pytest.raises(ValueError, match="^scheduler is DDIM, but models of this kind draw with"):
        schedulers.build("DDIM", FlowNoise(), 20)
