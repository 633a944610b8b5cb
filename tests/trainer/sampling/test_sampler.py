import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.trainer.sampling.progress import Progress
from trainer import families
from trainer.families.base import Framing, ModelFamily
from trainer.sampling import schedulers
from trainer.sampling.sampler import encode_prompts, sample, sample_each
from trainer.sampling.schedulers import SCHEDULERS
from trainer.settings.config import SamplingConfig

PROMPTS = ["a photo of a cup", "a red cat", "a photo of a cup"]


@pytest.fixture(scope="module")
def tiny_model(tiny_checkpoint: Path) -> ModelFamily:
    """Loaded once: sampling does not change a model."""
    return families.load(tiny_checkpoint, torch.device("cpu"))


@contextmanager
def recorded(module: nn.Module) -> Iterator[list[Tensor]]:
    """Records the first input of each call of the module."""
    inputs: list[Tensor] = []

    def record(_: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.append(args[0] if args else next(iter(kwargs.values())))

    handle = module.register_forward_pre_hook(record, with_kwargs=True)
    yield inputs
    handle.remove()


def noise_of(model: ModelFamily, seed: int) -> Tensor:
    side = model.native_resolution // model.latent_factor
    shape = (model.latent_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def levels_apart(left: list[np.ndarray], right: list[np.ndarray]) -> int:
    return int(np.abs(np.stack(left).astype(int) - np.stack(right).astype(int)).max())


def encode(model: ModelFamily, prompt: str) -> Tensor:
    return model.encode_captions([prompt]).hidden


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_starts_from_the_noise_of_the_seed(tiny_model: ModelFamily, name: str):
    with recorded(tiny_model.unet) as inputs:
        sample(tiny_model, PROMPTS, SamplingConfig(scheduler=name, steps=3, seed=5, batch_size=2))
    calls = len(inputs) // 2  # the other half belongs to the second batch
    starts = torch.cat([inputs[0], inputs[calls]])
    for seed, start in zip((5, 6, 7), starts, strict=True):
        # The schedulers' first noise levels differ a little; the noise itself does not.
        expected = noise_of(tiny_model, seed)
        assert start.norm() == pytest.approx(expected.norm().item(), rel=0.05)
        expected *= start.norm() / expected.norm()
        assert torch.allclose(start, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["PNDM", "Euler ancestral", "DDPM"])
def test_the_batch_size_changes_no_image_by_more_than_rounding(tiny_model: ModelFamily, name: str):
    images = {
        batch_size: sample(
            tiny_model,
            PROMPTS,
            SamplingConfig(scheduler=name, steps=4, seed=5, batch_size=batch_size),
        )
        for batch_size in (1, 2, 3)
    }
    assert levels_apart(images[1], images[2]) <= 1
    assert levels_apart(images[1], images[3]) <= 1
    assert levels_apart(images[1][:1], images[1][2:]) > 5  # the same prompt, another seed


def test_images_of_chosen_seeds_equal_those_of_consecutive_seeds(tiny_model: ModelFamily):
    sampling = SamplingConfig(steps=3, seed=5, batch_size=1)
    row = sample(tiny_model, ["a cup"] * 3, sampling)
    chosen = list(sample_each(tiny_model, [("a cup", 7), ("a cup", 5)], sampling))
    assert np.array_equal(chosen, [row[2], row[0]])


@pytest.mark.parametrize("name", ["DDIM", "PNDM"])
def test_images_equal_those_of_the_diffusers_pipeline(tiny_model: ModelFamily, name: str):
    import diffusers

    scheduler = getattr(diffusers, f"{name}Scheduler").from_config(
        {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "num_train_timesteps": 1000, "set_alpha_to_one": False, "steps_offset": 1,
            "clip_sample": False, "skip_prk_steps": True,
        }
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=tiny_model.vae, unet=tiny_model.unet, scheduler=scheduler, text_encoder=None,
        tokenizer=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    side = tiny_model.native_resolution
    theirs = pipeline(
        prompt_embeds=torch.cat([encode(tiny_model, prompt) for prompt in PROMPTS]),
        negative_prompt_embeds=encode(tiny_model, "ugly").repeat(3, 1, 1),
        latents=torch.stack([noise_of(tiny_model, seed) for seed in (3, 4, 5)]),
        width=side, height=side, num_inference_steps=20, guidance_scale=6.0, output_type="np",
    ).images  # fmt: skip
    sampling = SamplingConfig(
        scheduler=name, steps=20, guidance_scale=6, negative_prompt="ugly", seed=3
    )
    ours = sample(tiny_model, PROMPTS, sampling)
    assert levels_apart(ours, list((theirs * 255).round().astype(np.uint8))) <= 1
    assert np.stack(ours).std() > 5


def test_guidance_moves_away_from_the_negative_prompt(tiny_model: ModelFamily):
    """Compared with one DDIM step (arXiv 2010.02502, equation 12) on the guided noise of arXiv
    2207.12598, equation 6, whose weight w is guidance_scale - 1."""
    sampling = SamplingConfig(steps=1, guidance_scale=4, negative_prompt="ugly", seed=2)
    latents, timestep = noise_of(tiny_model, 2)[None], torch.tensor([999])
    with torch.no_grad():
        conditional, unconditional = (
            tiny_model.predict(latents, timestep, tiny_model.encode_captions([text]))
            for text in ("a cup", "ugly")
        )
        noise = (1 + 3) * conditional - 3 * unconditional
        last, first = tiny_model.noise.alphas_cumprod[[999, 0]]
        data = (latents - (1 - last).sqrt() * noise) / last.sqrt()
        pixels = tiny_model.decode_latents(first.sqrt() * data + (1 - first).sqrt() * noise)
    expected = ((pixels[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy() * 255
    image = sample(tiny_model, ["a cup"], sampling)[0]
    assert np.abs(image - expected).max() <= 0.51


def test_guidance_is_computed_in_fp32_under_autocast(
    tiny_model: ModelFamily, monkeypatch: pytest.MonkeyPatch
):
    """It multiplies a small difference, of which bf16 would keep only a few bits."""
    outputs, guided, step = [], [], schedulers.step

    def record(*arguments: object, **options: object) -> Tensor:
        guided.append(arguments[1])
        return step(*arguments, **options)

    monkeypatch.setattr(schedulers, "step", record)
    handle = tiny_model.unet.register_forward_hook(lambda _, args, out: outputs.append(out.sample))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample(tiny_model, ["a cup"], SamplingConfig(steps=3, guidance_scale=7))
    handle.remove()
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    for conditional, unconditional, found in zip(outputs[::2], outputs[1::2], guided, strict=True):
        expected = 7 * conditional.double() - 6 * unconditional.double()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_unet_runs_twice_per_step_only_with_guidance(tiny_model: ModelFamily):
    for guidance_scale, calls in [(1, 4), (1.5, 8)]:
        with recorded(tiny_model.unet) as inputs:
            sample(tiny_model, ["a"], SamplingConfig(steps=4, guidance_scale=guidance_scale))
        assert len(inputs) == calls


def test_each_prompt_is_encoded_once(tiny_model: ModelFamily):
    with recorded(tiny_model.text_encoders[0]) as inputs:
        sample(tiny_model, PROMPTS * 2, SamplingConfig(steps=2, batch_size=1))
    assert len(inputs) == 3  # two different prompts, and the empty negative prompt


def test_prompts_whose_conditioning_is_known_are_not_encoded(tiny_model: ModelFamily):
    sampling = SamplingConfig(steps=1, negative_prompt="ugly")
    expected = sample(tiny_model, PROMPTS, sampling)
    encoded = encode_prompts(tiny_model, {"ugly", PROMPTS[0]}, (16, 16))
    with recorded(tiny_model.text_encoders[0]) as calls:
        found = sample(tiny_model, PROMPTS, sampling, encoded=encoded)
        assert len(calls) == 1
        sample(tiny_model, PROMPTS, sampling, encoded=encoded)
        assert len(calls) == 1
    assert np.array_equal(found, expected)


def test_prompts_are_encoded_with_the_size_of_the_images(
    tiny_model: ModelFamily, monkeypatch: pytest.MonkeyPatch
):
    framings: list[Framing] = []
    monkeypatch.setattr(
        tiny_model, "with_framings", lambda given, found: framings.extend(found) or given
    )
    sample(tiny_model, ["a cup"], SamplingConfig(steps=1), size=(24, 32))
    assert framings == [Framing(original_size=(24, 32), crop=(0, 0), size=(24, 32))] * 2


def test_the_process_wide_generators_are_not_touched(tiny_model: ModelFamily):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    for name in SCHEDULERS:
        sample(tiny_model, ["a cup"], SamplingConfig(scheduler=name, steps=2))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])


def test_a_model_in_training_samples_without_dropout_and_stays_in_training(
    tiny_model: ModelFamily,
):
    model = copy.deepcopy(tiny_model)
    sampling = SamplingConfig(steps=2)
    images = sample(model, ["a cup"], sampling)
    model.unet.train()
    model.text_encoders.train()
    next(model.unet.children()).eval()
    for module in [*model.unet.modules(), *model.text_encoders.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    modules = [*model.unet.modules(), *model.text_encoders.modules(), *model.vae.modules()]
    before = [module.training for module in modules]
    assert np.array_equal(sample(model, ["a cup"], sampling), images)
    with pytest.raises(KeyboardInterrupt):
        sample(model, ["a cup"], sampling, observer=Progress(stop_at=1))
    assert [module.training for module in modules] == before
    assert True in before
    assert False in before


def test_every_denoising_step_is_reported(tiny_model: ModelFamily):
    steps = Progress()
    sampling = SamplingConfig(scheduler="PNDM", steps=5, batch_size=2)
    sample(tiny_model, PROMPTS, sampling, observer=steps)
    # PNDM predicts once more than it has steps, in each of the two batches.
    assert steps.calls == [("Sampling", done, 12) for done in range(1, 13)]


def test_an_observer_that_raises_stops_within_one_step(tiny_model: ModelFamily):
    with recorded(tiny_model.unet) as inputs, pytest.raises(KeyboardInterrupt):
        sample(tiny_model, PROMPTS, SamplingConfig(guidance_scale=1), observer=Progress(stop_at=3))
    assert len(inputs) == 3


def test_any_multiple_of_the_latent_factor_is_a_valid_size(tiny_model: ModelFamily):
    factor = tiny_model.latent_factor
    size = (13 * factor, 7 * factor)  # odd numbers, which down-sampling does not divide evenly
    assert sample(tiny_model, ["a"], SamplingConfig(steps=2), size=size)[0].shape == (
        7 * factor, 13 * factor, 3
    )  # fmt: skip


def test_other_sizes_are_refused(tiny_model: ModelFamily):
    factor = tiny_model.latent_factor
    with pytest.raises(ValueError, match="Image width") as error:
        sample(tiny_model, ["a"], SamplingConfig(), size=(8 * factor + 1, 0))
    assert str(error.value) == (
        f"Image width and height must be multiples of {factor}, got {8 * factor + 1}x0. The "
        f"nearest is {8 * factor}x{factor}."
    )


def test_an_image_of_nans_is_black_and_warned_about(
    tiny_model: ModelFamily, caplog: pytest.LogCaptureFixture
):
    model = copy.deepcopy(tiny_model)
    nn.init.constant_(model.vae.decoder.conv_out.bias, float("nan"))
    image = sample(model, ["a"], SamplingConfig(steps=1, seed=9))[0]
    assert image.max() == 0
    assert caplog.messages == [
        "The image of seed 9 is black where the model produced NaN. Choose fp32 or bf16 precision; "
        "if the model was trained, lower the learning rate and train again."
    ]


def test_images_that_overflow_fp16_are_still_decoded(
    tiny_model: ModelFamily, caplog: pytest.LogCaptureFixture
):
    """Activations of Stable Diffusion's decoder exceed the range of fp16."""
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        model.vae.decoder.conv_in.weight.mul_(1e6)  # the norm layers after it undo this
    sampling = SamplingConfig(steps=2, seed=9)
    exact = sample(model, ["a cup"], sampling)
    with torch.autocast("cpu", dtype=torch.float16):
        assert levels_apart(sample(model, ["a cup"], sampling), exact) < 40
        latents = torch.zeros(1, 4, 8, 8) + 0.5
        assert not model.decode_latents(latents).isfinite().all()
    assert caplog.messages == []


def test_a_prompt_that_is_cut_is_warned_about_once(tiny_model, caplog):
    prompt = f"a cup {'very ' * 80}red"
    for _ in range(2):
        sample(tiny_model, [prompt], SamplingConfig(steps=1))
    (message,) = caplog.messages
    assert message.startswith(f"The prompt {prompt!r} is longer than the text encoder can read.")
    assert message.endswith(
        "Its end is ignored: 'very very very very very very very red'. Shorten the prompt."
    )
    caplog.clear()
    shorter = prompt.removesuffix(message.split("'")[-2])
    sample(tiny_model, [shorter], SamplingConfig(steps=1))
    assert caplog.messages == []


def test_a_negative_prompt_that_is_cut_is_warned_about(tiny_model, caplog):
    sample(tiny_model, ["a cup"], SamplingConfig(steps=1, negative_prompt="ugly " * 75 + "hands"))
    (message,) = caplog.messages
    assert message.endswith("Its end is ignored: 'hands'. Shorten the prompt.")
    caplog.clear()
    sample(tiny_model, ["a cup"], SamplingConfig(steps=1, negative_prompt="ugly " * 75))
    assert caplog.messages == []


def test_another_model_warns_of_the_same_prompt_again(tiny_checkpoint, caplog):
    """Each run loads its model, and ComfyUI makes many runs in one process."""
    for _ in range(2):
        model = families.load(tiny_checkpoint, torch.device("cpu"))
        sample(model, ["cup " * 75 + "red"], SamplingConfig(steps=1))
    assert len(caplog.messages) == 2


def test_without_prompts_there_are_no_images(tiny_model: ModelFamily):
    assert sample(tiny_model, [], SamplingConfig()) == []
