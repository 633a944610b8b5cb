"""How the embedded model was made: `python -m trainer.toy.recipe WORK_FOLDER`.

Draws the toy world, then trains the VAE, the classifier, and the U-Net together with the text
encoder, all from scratch. Takes about two hours on two CPU cores. Stages whose file exists in
WORK_FOLDER are skipped.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import pickle
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..evaluation.toy_encoder import ANSWERS_KEY, AttributeClassifier
from ..families.sd1 import SD1
from ..families.tokenizer import ClipTokenizer
from ..noise import DiscreteNoise, min_snr_weights, squared_errors
from . import world
from .drawing import SIZE
from .judge import QUESTIONS
from .lessons import draw_colorful, draw_labelled_images, draw_photos, draw_scenes, to_pixels
from .networks import (
    build_text_encoder,
    build_unet,
    build_vae,
    fill_unknown_words,
    fold_latent_scale,
)
from .scene import Scene

logger = logging.getLogger(__name__)

NUM_IMAGES = 36_000
VAE_STEPS = 3_000
DENOISER_STEPS = 5_000
JUDGE_STEPS = 1_500
NUM_LABELLED_IMAGES = 12_000
METADATA = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "Toy world",
    "modelspec.resolution": f"{SIZE}x{SIZE}",
    "modelspec.prediction_type": "epsilon",
    "dreambooth.constants": json.dumps({"vae_norm_groups": 8, "resolution": SIZE}),
}


def draw_world(work: Path) -> None:
    with ProcessPoolExecutor() as pool:
        drawn = [pair for part in pool.map(draw_scenes, range(NUM_IMAGES // 1000)) for pair in part]
        colorful = np.concatenate(list(pool.map(draw_colorful, range(1000, 1008))))
    np.save(work / "pictures.npy", np.stack([image for _, image in drawn]))
    np.save(work / "colorful.npy", colorful)
    (work / "scenes.pickle").write_bytes(pickle.dumps([scene for scene, _ in drawn]))


def optimize(
    modules: list[nn.Module],
    loss_at: Callable[[int], Tensor],
    num_steps: int,
    learning_rate: float,
    keep: Callable[[list[nn.Module]], None],
    ema_limit: float = 0.999,
) -> None:
    """Minimise `loss_at(step)` with AdamW, 100 warm-up steps, cosine decay to 3 % and gradient
    norms clipped to 1. Calls `keep` with the modules' moving averages every 500 steps and at the
    end."""
    parameters: list[Tensor] = [p for module in modules for p in module.parameters()]
    averaged = copy.deepcopy(modules)
    averages: list[Tensor] = [p for module in averaged for p in module.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    started, losses = time.monotonic(), []
    for step in range(num_steps):
        decay = 0.03 + 0.97 * (1 + math.cos(math.pi * step / num_steps)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 100) * decay
        loss = loss_at(step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, parameters, 1 - min(ema_limit, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            logger.info(
                "step %d of %d, loss %.4f, %.0f s",
                step + 1, num_steps, np.mean(losses[-100:]), time.monotonic() - started,
            )  # fmt: skip
        if (step + 1) % 500 == 0 or step + 1 == num_steps:
            keep(averaged)


def train_vae(work: Path) -> None:
    """Loss: absolute and squared error, error of the differences between neighbouring pixels, and a
    small KL term. The first 80 % of the steps use crops of a quarter of the image, for speed."""
    images = np.concatenate([np.load(work / "pictures.npy"), np.load(work / "colorful.npy")])
    torch.manual_seed(0)
    rng, vae = np.random.default_rng(0), build_vae()

    def loss_at(step: int) -> Tensor:
        pixels = to_pixels(images[rng.integers(len(images), size=16)])
        if step < 0.8 * VAE_STEPS:
            top, left = rng.integers(0, 33, size=2)
            pixels = pixels[:, :, top : top + 32, left : left + 32]
        if rng.random() < 0.2:
            pixels = pixels[:, rng.permutation(3)]
        posterior = vae.encode(pixels).latent_dist
        error = vae.decode(posterior.sample()).sample - pixels
        edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return error.abs().mean() + error.square().mean() + 0.5 * edges + 1e-3 * kl

    def keep(averaged: list[nn.Module]) -> None:
        torch.save(averaged[0].state_dict(), work / "vae.pt.part")

    optimize([vae], loss_at, VAE_STEPS, 1.5e-3, keep, ema_limit=0.998)
    (work / "vae.pt.part").rename(work / "vae.pt")


@torch.no_grad()
def encode_world(work: Path) -> None:
    """Mean and standard deviation of every image's latents, normalised per channel. The channels'
    own mean and standard deviation are kept, to be folded into the VAE (`fold_latent_scale`)."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    images = np.load(work / "pictures.npy")
    means, stds = [], []
    for batch in np.array_split(images, len(images) // 100):
        posterior = vae.encode(to_pixels(batch)).latent_dist
        means.append(posterior.mean)
        stds.append(posterior.std)
    mean, std = torch.cat(means), torch.cat(stds)
    center = mean.mean(dim=(0, 2, 3), keepdim=True)
    scale = (mean.var(dim=(0, 2, 3), keepdim=True) + std.square().mean((0, 2, 3), True)).sqrt()
    torch.save(
        {"mean": ((mean - center) / scale).half(), "deviation": (std / scale).half(),
         "center": center.flatten(), "scale": scale.flatten()},
        work / "latents.pt",
    )  # fmt: skip


def train_denoiser(work: Path) -> None:
    """Train U-Net and text encoder together on the noise prediction loss with min-SNR weights
    (gamma 5). One caption in ten is empty, for classifier-free guidance."""
    latents = torch.load(work / "latents.pt", weights_only=True)
    scenes: list[Scene] = pickle.loads((work / "scenes.pickle").read_bytes())
    torch.manual_seed(1)
    rng, tokenizer = random.Random(1), ClipTokenizer()
    unet, text_encoder = build_unet(), build_text_encoder()
    schedule = DiscreteNoise.scaled_linear(0.00085, 0.012)

    def loss_at(step: int) -> Tensor:
        chosen = rng.choices(range(len(scenes)), k=32)
        captions = ["" if rng.random() < 0.1 else world.caption(scenes[i], rng) for i in chosen]
        mean, std = latents["mean"][chosen].float(), latents["deviation"][chosen].float()
        clean = mean + std * torch.randn_like(mean)
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (32,))
        hidden = text_encoder(tokenizer.encode(captions)).last_hidden_state
        noisy = schedule.add_noise(clean, noise, timesteps)
        errors = squared_errors(unet(noisy, timesteps, hidden).sample, noise)
        return (min_snr_weights(schedule, timesteps, 5) * errors).mean()

    def keep(averaged: list[nn.Module]) -> None:
        states = {"unet": averaged[0].state_dict(), "text": averaged[1].state_dict()}
        torch.save(states, work / "denoiser.pt.part")

    optimize([unet, text_encoder], loss_at, DENOISER_STEPS, 1e-3, keep)
    (work / "denoiser.pt.part").rename(work / "denoiser.pt")


# ------------------------------------------------------------------ export


def export(work: Path) -> None:
    """Write one fp16 checkpoint in Stable Diffusion 1's single-file layout."""
    vae, text_encoder, unet = build_vae(), build_text_encoder(), build_unet()
    states = torch.load(work / "denoiser.pt", weights_only=True)
    unet.load_state_dict(states["unet"])
    text_encoder.load_state_dict(states["text"])
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    latents = torch.load(work / "latents.pt", weights_only=True)
    fold_latent_scale(vae, latents["center"], latents["scale"])
    fill_unknown_words(text_encoder.get_input_embeddings().weight)
    tensors = SD1.checkpoint_tensors(unet, vae, text_encoder)
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, work / "model.safetensors", metadata=METADATA)


# -------------------------------------------------------------- classifier


def train_judge(work: Path) -> None:
    """Train the classifier. Half of its images are passed through the VAE, like all images that it
    will see later."""
    torch.manual_seed(2)
    pixels, labels = draw_labelled_images(NUM_LABELLED_IMAGES, random.Random(2))
    pixels[::2] = _reconstruct(pixels[::2], work)
    judge = AttributeClassifier(QUESTIONS)

    def loss_at(step: int) -> Tensor:
        chosen = torch.randint(0, len(pixels), (64,))
        logits = judge(pixels[chosen] + 0.05 * torch.randn(64, *pixels.shape[1:]))
        losses = [
            F.cross_entropy(logits[question], labels[question][chosen], ignore_index=-1)
            for question in QUESTIONS
        ]
        return torch.stack(losses).sum()

    def keep(averaged: list[nn.Module]) -> None:
        # Not the average, which lacks the statistics of the batch norms.
        states = judge.state_dict()
        halves = {k: v.half() if v.is_floating_point() else v for k, v in states.items()}
        answers = {ANSWERS_KEY: json.dumps(QUESTIONS)}
        save_file(halves, work / "judge.safetensors.part", metadata=answers)

    optimize([judge], loss_at, JUDGE_STEPS, 2e-3, keep)
    (work / "judge.safetensors.part").rename(work / "judge.safetensors")


@torch.no_grad()
def _reconstruct(pixels: Tensor, work: Path) -> Tensor:
    """The pixels after encoding and decoding by the VAE."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt", weights_only=True))
    return torch.cat([vae(batch).sample.clamp(-1, 1) for batch in pixels.chunk(len(pixels) // 50)])


def stages() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "scenes.pickle", draw_world
    yield "vae.pt", train_vae
    yield "latents.pt", encode_world
    yield "judge.safetensors", train_judge
    yield "denoiser.pt", train_denoiser
    yield "model.safetensors", export
    yield "photos", draw_photos


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded toy model from scratch.")
    parser.add_argument("work", type=Path, help="folder for the results; finished stages are kept")
    work: Path = parser.parse_args().work
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work.mkdir(parents=True, exist_ok=True)
    for result, stage in stages():
        if not (work / result).exists():
            logger.info("%s", stage.__name__)
            stage(work)


if __name__ == "__main__":
    main()
