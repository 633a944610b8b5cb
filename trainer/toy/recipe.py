"""How the embedded model was made: `python -m trainer.toy.recipe WORK_FOLDER`.

Draws the toy world, trains the VAE, then the U-Net and the text encoder together, from nothing.
About two hours on two CPU cores. A stage whose file stands in WORK_FOLDER is not run again.
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
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ..families.sd1 import checkpoint_tensors
from ..families.tokenizer import END, START, ClipTokenizer
from . import world
from .judge import QUESTIONS, Classifier

logger = logging.getLogger(__name__)

NUM_PICTURES = 36_000
NUM_NAMES = 64
VAE_STEPS = 3_000
DENOISER_STEPS = 5_000
JUDGE_STEPS = 1_500
TEXT_WIDTH = 96
METADATA = {
    "format": "pt",
    "modelspec.sai_model_spec": "1.0.1",
    "modelspec.architecture": "stable-diffusion-v1",
    "modelspec.title": "Toy world",
    "modelspec.resolution": f"{world.SIZE}x{world.SIZE}",
    "modelspec.prediction_type": "epsilon",
    "dreambooth.constants": json.dumps({"vae_norm_groups": 8, "resolution": world.SIZE}),
}


def named_looks() -> dict[str, world.Look]:
    """Rare words of CLIP's vocabulary, each bound to a look of its own.

    They teach the text encoder that an unknown word in front of a noun is an individual. Without
    them it learns to ignore such words, and DreamBooth can then not tell subject from class.
    """
    tokenizer, rng = ClipTokenizer(), random.Random(7)
    letters = "bcdfghjklmnpqrstvwxz"
    words: list[str] = []
    while len(words) < NUM_NAMES:
        word = "".join(rng.choices(letters, k=3))
        if word != "sks" and word not in words and tokenizer.token_id(word + "</w>") is not None:
            words.append(word)
    return {word: world.random_look(rng) for word in words}


# ---------------------------------------------------------------- pictures


def draw_scenes(seed: int) -> list[tuple[world.Scene, np.ndarray]]:
    """A thousand scenes and their pictures [64, 64, 3] uint8; three in ten show a named look."""
    rng, looks = random.Random(seed), named_looks()
    scenes = []
    for _ in range(1000):
        if rng.random() < 0.3:
            name, look = rng.choice(list(looks.items()))
            scenes.append(replace(world.pose(look, rng), name=name))
        else:
            scenes.append(world.random_scene(rng))
    return [(scene, np.asarray(world.draw(scene))) for scene in scenes]


def draw_colorful(seed: int) -> np.ndarray:
    """A thousand pictures [1000, 64, 64, 3] in any colour and pattern, for the VAE alone: what it
    has never seen it could not show, however well the U-Net learns it."""
    rng, pictures = random.Random(seed), []
    for _ in range(1000):
        colors = [tuple(rng.randint(0, 255) for _ in range(3)) for _ in range(3)]
        pattern = rng.choice([*world.PATTERNS, "band", "band"])
        look = world.Look(body=colors[0], pattern=pattern, accent=colors[1], detail=colors[2])
        pictures.append(np.asarray(world.draw(world.pose(look, rng))))
    return np.stack(pictures)


def draw_world(work: Path) -> None:
    with ProcessPoolExecutor() as pool:
        drawn = [
            pair for part in pool.map(draw_scenes, range(NUM_PICTURES // 1000)) for pair in part
        ]
        colorful = np.concatenate(list(pool.map(draw_colorful, range(1000, 1008))))
    np.save(work / "pictures.npy", np.stack([picture for _, picture in drawn]))
    np.save(work / "colorful.npy", colorful)
    (work / "scenes.pickle").write_bytes(pickle.dumps([scene for scene, _ in drawn]))


def to_pixels(pictures: np.ndarray) -> Tensor:
    """[B, 3, H, W] in [-1, 1] from [B, H, W, 3] uint8."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


# ----------------------------------------------------------------- networks
# Stable Diffusion 1's classes, made small. Group norms, heads and scaling factor are the original's
# except that the VAE's 32-channel layers take 8 groups: 32 would normalise each channel alone, and
# the picture's colours with it.


def build_vae() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=world.SIZE,
    )


def build_unet() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=world.SIZE // 4,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )


def build_text_encoder() -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=49408,
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=12,
            max_position_embeddings=77,
            hidden_act="quick_gelu",
        )
    )


# ----------------------------------------------------------------- training


def optimize(
    modules: list[nn.Module],
    loss_at: Callable[[int], Tensor],
    num_steps: int,
    learning_rate: float,
    keep: Callable[[list[nn.Module]], None],
    ema_limit: float = 0.999,
) -> None:
    """Minimise `loss_at(step)`: AdamW, 100 steps of warm-up, cosine decay to 3 %, clipping at 1.
    `keep` is given the averaged modules every 500 steps and at the end."""
    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    averaged = copy.deepcopy(modules)
    slow = [
        q
        for module, twin in zip(modules, averaged, strict=True)
        for p, q in zip(module.parameters(), twin.parameters(), strict=True)
        if p.requires_grad
    ]
    optimizer = torch.optim.AdamW(
        parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    started, losses = time.monotonic(), []
    for step in range(num_steps):
        decay = 0.03 + 0.97 * (1 + math.cos(math.pi * step / num_steps)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * min(1, (step + 1) / 100) * decay
        loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(slow, parameters, 1 - min(ema_limit, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            logger.info(
                "step %d of %d, loss %.4f, %.0f s",
                step + 1, num_steps, np.mean(losses[-100:]), time.monotonic() - started,
            )  # fmt: skip
        if (step + 1) % 500 == 0 or step + 1 == num_steps:
            keep(averaged)


def train_vae(work: Path) -> None:
    """L1 + squared error + differences between neighbours + a little KL. The first four fifths of
    the steps see quarter pictures, which cost a quarter."""
    pictures = np.concatenate([np.load(work / "pictures.npy"), np.load(work / "colorful.npy")])
    torch.manual_seed(0)
    rng, vae = np.random.default_rng(0), build_vae()

    def loss_at(step: int) -> Tensor:
        pixels = to_pixels(pictures[rng.integers(len(pictures), size=16)])
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
    """Mean and deviation of every picture's latents, each channel brought to mean 0 and deviation
    1; the channels' own are kept for folding into the VAE (`fold_latent_scale`)."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt"))
    pictures = np.load(work / "pictures.npy")
    means, deviations = [], []
    for batch in np.array_split(pictures, len(pictures) // 100):
        posterior = vae.encode(to_pixels(batch)).latent_dist
        means.append(posterior.mean)
        deviations.append(posterior.std)
    mean, deviation = torch.cat(means), torch.cat(deviations)
    center = mean.mean(dim=(0, 2, 3), keepdim=True)
    scale = (
        mean.var(dim=(0, 2, 3), keepdim=True) + deviation.square().mean((0, 2, 3), True)
    ).sqrt()
    torch.save(
        {"mean": ((mean - center) / scale).half(), "deviation": (deviation / scale).half(),
         "center": center.flatten(), "scale": scale.flatten()},
        work / "latents.pt",
    )  # fmt: skip


def alphas_cumprod() -> Tensor:
    """Stable Diffusion 1's noise schedule [1000]."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return (1 - betas).cumprod(0).float()


def train_denoiser(work: Path) -> None:
    """U-Net and text encoder together: error of the predicted noise with min-SNR-5 weights, one
    caption in ten left empty for classifier-free guidance."""
    latents = torch.load(work / "latents.pt")
    scenes: list[world.Scene] = pickle.loads((work / "scenes.pickle").read_bytes())
    torch.manual_seed(1)
    rng, tokenizer = random.Random(1), ClipTokenizer()
    unet, text_encoder, alphas = build_unet(), build_text_encoder(), alphas_cumprod()
    snr_weights = (5 * (1 - alphas) / alphas).clamp(max=1)

    def loss_at(step: int) -> Tensor:
        chosen = rng.choices(range(len(scenes)), k=32)
        captions = ["" if rng.random() < 0.1 else world.caption(scenes[i], rng) for i in chosen]
        mean, deviation = latents["mean"][chosen].float(), latents["deviation"][chosen].float()
        clean = mean + deviation * torch.randn_like(mean)
        noise, timesteps = torch.randn_like(clean), torch.randint(0, 1000, (32,))
        alpha = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        hidden = text_encoder(tokenizer.encode(captions)).last_hidden_state
        error = F.mse_loss(unet(noisy, timesteps, hidden).sample, noise, reduction="none")
        return (snr_weights[timesteps] * error.mean(dim=(1, 2, 3))).mean()

    def keep(averaged: list[nn.Module]) -> None:
        states = {"unet": averaged[0].state_dict(), "text": averaged[1].state_dict()}
        torch.save(states, work / "denoiser.pt.part")

    optimize([unet, text_encoder], loss_at, DENOISER_STEPS, 1e-3, keep)
    (work / "denoiser.pt.part").rename(work / "denoiser.pt")


# ------------------------------------------------------------------ export


def export(work: Path) -> None:
    """One fp16 checkpoint in Stable Diffusion 1's single-file layout."""
    vae, text_encoder, unet = build_vae(), build_text_encoder(), build_unet()
    states = torch.load(work / "denoiser.pt")
    unet.load_state_dict(states["unet"])
    text_encoder.load_state_dict(states["text"])
    vae.load_state_dict(torch.load(work / "vae.pt"))
    latents = torch.load(work / "latents.pt")
    fold_latent_scale(vae, latents["center"], latents["scale"])
    fill_unknown_words(text_encoder.get_input_embeddings().weight)
    tensors = checkpoint_tensors(unet, vae, text_encoder)
    tensors = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, work / "model.safetensors", metadata=METADATA)


@torch.no_grad()
def fold_latent_scale(vae: nn.Module, center: Tensor, scale: Tensor) -> None:
    """Move each latent channel's own mean and deviation [4] into the 1x1 convolutions at both ends
    of the latents, so that Stable Diffusion's scaling factor brings them to deviation 1."""
    scale = scale * 0.18215
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= scale.view(-1, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - center) / scale
    quant.bias[4:] -= 2 * scale.log()
    post.bias += post.weight[:, :, 0, 0] @ center
    post.weight *= scale.view(1, -1, 1, 1)


@torch.no_grad()
def fill_unknown_words(embeddings: Tensor) -> None:
    """Give every word that no caption held an embedding as one of the names might have: an unknown
    word before a noun then is an individual that the model has yet to meet."""
    tokenizer = ClipTokenizer()
    words = " ".join([*world.SHAPES, *world.COLORS, *world.PATTERNS, *world.PREFIXES,
                      *world.BACKGROUNDS.values(), *named_looks()])  # fmt: skip
    known = {tokenizer.token_id(f"{word}</w>") for word in words.split()}
    known |= {tokenizer.token_id(START), tokenizer.token_id(END)}
    unknown = [row for row in range(len(embeddings)) if row not in known]
    names = embeddings[[tokenizer.token_id(f"{name}</w>") for name in named_looks()]]
    center = names.mean(dim=0)
    mixture = torch.randn(len(unknown), len(names), generator=torch.Generator().manual_seed(3))
    embeddings[unknown] = center + mixture @ (names - center) / len(names) ** 0.5


def draw_photos(work: Path) -> None:
    """Six pictures of the subject, over all backgrounds."""
    rng, folder = random.Random(11), work / "photos"
    folder.mkdir()
    for number, background in enumerate([*world.BACKGROUNDS, "grass"]):
        scene = replace(world.subject_scene(rng), background=background)
        world.draw(scene).save(folder / f"cup_{number}.png")


# ------------------------------------------------------------------- judge

Labels = dict[str, Tensor]


def draw_exam(count: int, rng: random.Random) -> tuple[Tensor, Labels]:
    """Pixels [B, 3, 64, 64] and the right answers [B] to each of the judge's questions, -1 where a
    question has none. A quarter shows the subject, a quarter something that only resembles it."""
    scenes, labels = [], []
    for _ in range(count):
        draw = rng.choice((world.random_scene, _stranger, world.subject_scene, _lookalike))
        scene = draw(rng)
        scenes.append(np.asarray(world.draw(scene)))
        labels.append(
            (
                QUESTIONS["shape"].index(scene.shape),
                QUESTIONS["color"].index(scene.color) if scene.color else -1,
                QUESTIONS["background"].index(scene.background),
                int(draw is world.subject_scene),
            )
        )
    answers = torch.tensor(labels)
    return to_pixels(np.stack(scenes)), {q: answers[:, i] for i, q in enumerate(QUESTIONS)}


def _stranger(rng: random.Random) -> world.Scene:
    return world.pose(world.random_look(rng), rng)


def _lookalike(rng: random.Random) -> world.Scene:
    """The subject with one or two of its traits exchanged."""
    other, look, shape = world.random_look(rng), world.SUBJECT, "cup"
    for trait in rng.sample(("body", "accent", "detail", "pattern", "shape"), rng.randint(1, 2)):
        if trait == "shape":
            shape = rng.choice([name for name in world.SHAPES if name != "cup"])
        else:
            look = replace(look, **{trait: getattr(other, trait)})
    return world.pose(look, rng, shape=shape)


def train_judge(work: Path) -> None:
    """Half of what it learns from has gone through the VAE, as all that it will judge has."""
    vae = build_vae()
    vae.load_state_dict(torch.load(work / "vae.pt"))
    torch.manual_seed(2)
    rng, judge = random.Random(2), Classifier()

    def loss_at(step: int) -> Tensor:
        pixels, labels = draw_exam(64, rng)
        with torch.no_grad():
            pixels[:32] = vae(pixels[:32]).sample.clamp(-1, 1)
        pixels += 0.05 * torch.randn_like(pixels)
        logits = judge(pixels)
        return sum(
            (F.cross_entropy(logits[q], labels[q], ignore_index=-1) for q in QUESTIONS),
            start=torch.zeros(()),
        )

    def keep(averaged: list[nn.Module]) -> None:
        states = judge.state_dict()  # not the average, which lacks the batch norms' statistics
        save_file({k: v.half() if v.is_floating_point() else v for k, v in states.items()},
                  work / "judge.safetensors.part")  # fmt: skip

    optimize([judge], loss_at, JUDGE_STEPS, 2e-3, keep)
    (work / "judge.safetensors.part").rename(work / "judge.safetensors")


def stages() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield "scenes.pickle", draw_world
    yield "vae.pt", train_vae
    yield "latents.pt", encode_world
    yield "judge.safetensors", train_judge
    yield "denoiser.pt", train_denoiser
    yield "model.safetensors", export
    yield "photos", draw_photos


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the embedded toy model from nothing.")
    parser.add_argument("work", type=Path, help="folder for what is made; finished stages are kept")
    work: Path = parser.parse_args().work
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work.mkdir(parents=True, exist_ok=True)
    for result, stage in stages():
        if not (work / result).exists():
            logger.info("%s", stage.__name__)
            stage(work)


if __name__ == "__main__":
    main()
