"""Stable Diffusion 2.1 and XL in full size with random weights: check that our networks and text
encodings are those of diffusers, transformers and ComfyUI, and train two steps of XL.

    python -m benchmarks.full_shape write FOLDER
    python -m benchmarks.full_shape compare FOLDER/sdxl.safetensors
    python -m benchmarks.full_shape train FOLDER/sdxl.safetensors --photos PHOTOS
    COMFYUI_PYTHON -m benchmarks.full_shape comfyui FOLDER/sdxl.safetensors --comfyui COMFYUI

The last one needs ComfyUI and its Python, which also has diffusers. The files take 7 and 2.6 GB."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.memory import Peak
from trainer import families
from trainer.families import shapes
from trainer.families.base import Framing
from trainer.families.sd2 import SD2
from trainer.families.sdxl import SDXL
from trainer.families.stable_diffusion import StableDiffusion
from trainer.families.tokenizer import ClipTokenizer
from trainer.storage.tensor_file import TensorToWrite, write

CPU = torch.device("cpu")
EMBEDDING = "my-dog"
PROMPTS = [
    "a photo of sks dog", "", "a red cup on the grass, " * 30, f"a photo of {EMBEDDING} outdoors",
]  # fmt: skip
"""Short, empty, too long, and with an embedding."""
SIDE = 8
"""Width and height of latents."""
TIMES = torch.tensor([5, 300, 600, 999])
FRAMING = Framing((8 * SIDE, 8 * SIDE), (0, 0), (8 * SIDE, 8 * SIDE))


def sd21_networks(num_layers: int = 24) -> dict[str, Any]:
    """Diffusers' and transformers' own networks, on torch's current default device. Diffusers
    leaves out the last of the text encoder's 24 layers, which is not used."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True
    )
    return {
        "unet": unet,
        "vae": shapes.SD15.vae.build(),
        "text_encoder": clip(1024, num_layers, 16, "gelu"),
    }


def sdxl_networks() -> dict[str, Any]:
    return {
        "unet": shapes.SDXL.unet.build(),
        "vae": shapes.SDXL.vae.build(),
        "text_encoder": clip(768, 12, 12, "quick_gelu"),
        "text_encoder_2": clip(1280, 32, 20, "gelu", projection_dim=1280),
    }


def clip(width: int, layers: int, heads: int, activation: str, **projection: int) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, hidden_act=activation, eos_token_id=49407, **projection,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


FILES: dict[str, tuple[type[StableDiffusion], Callable[[], dict[str, Any]]]] = {
    "sd21.safetensors": (SD2, sd21_networks),
    "sdxl.safetensors": (SDXL, sdxl_networks),
}


def write_files(folder: Path) -> None:
    """Write both files in fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (family, build) in FILES.items():
        with torch.device("meta"):
            tensors = family.checkpoint_tensors(*build().values())
        to_write = {key: _random(key, tuple(tensor.shape)) for key, tensor in tensors.items()}
        write(folder / name, to_write, {"format": "pt"})
        embedding = _embedding(folder / name)
        embedding.parent.mkdir(exist_ok=True)
        widths = {"clip_l": 768, "clip_g": 1280} if family is SDXL else {"clip_h": 1024}
        vectors = {key: _random(key, (2, width)) for key, width in widths.items()}
        write(embedding, vectors, {"format": "pt"})


def _embedding(path: Path) -> Path:
    """The embedding for a checkpoint. Its name is the placeholder."""
    return path.parent / f"embeddings-{path.stem}" / f"{EMBEDDING}.safetensors"


def _random(key: str, shape: tuple[int, ...]) -> TensorToWrite:
    """Matrices that preserve the scale of what they are multiplied with, and norms near 1."""

    def compute() -> Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
        numbers = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return (numbers / numbers[0].numel() ** 0.5).half()
        is_norm = key.endswith("weight")
        return (is_norm + 0.02 * numbers).half()

    return TensorToWrite(shape, torch.float16, compute)


@torch.no_grad()
def ours(path: Path) -> dict[str, Tensor]:
    """What our model computes in fp32."""
    model = families.load(path, CPU, _embedding(path))
    given = model.with_framings(model.encode_captions(PROMPTS), [FRAMING] * len(PROMPTS))
    noisy = noisy_latents()
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return {
        "text": given.hidden,
        **{f"pooled {name}": t for name, t in given.added.items() if name == "text_embeds"},
        "U-Net": model.predict(noisy, TIMES, given),
        "VAE, encoder": model.encode_pixels(pixels)[0],
        "VAE, decoder": model.decode_latents(noisy[:1]),
    }


def noisy_latents() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(len(PROMPTS), 4, SIDE, SIDE, generator=generator)


@torch.no_grad()
def theirs(path: Path) -> dict[str, Tensor]:
    """What diffusers' and transformers' networks compute with the weights that diffusers' own
    readers find in the file."""
    from diffusers.loaders import single_file_utils as readers
    from safetensors.torch import load_file

    with torch.device("meta"):
        networks = sdxl_networks() if path.name == "sdxl.safetensors" else sd21_networks(23)
    tensors = {key: tensor.float() for key, tensor in load_file(path).items()}
    is_xl = "text_encoder_2" in networks
    prefix = "conditioner.embedders.1.model." if is_xl else "cond_stage_model.model."
    last = networks["text_encoder_2" if is_xl else "text_encoder"]
    found = {
        "unet": readers.convert_ldm_unet_checkpoint(dict(tensors), networks["unet"].config),
        "vae": readers.convert_ldm_vae_checkpoint(dict(tensors), networks["vae"].config),
        "text_encoder_2" if is_xl else "text_encoder": readers.convert_open_clip_checkpoint(
            last, dict(tensors), prefix
        ),
    }
    if is_xl:
        start = "conditioner.embedders.0.transformer."
        found["text_encoder"] = {
            k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)
        }
    for part, network in networks.items():
        _fill(network, found[part])
    del tensors, found
    return _compute(networks, scale=0.13025 if is_xl else 0.18215)


def _fill(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    bare = {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}
    state = {
        name: tensors.get(name, bare.get(name.removeprefix("text_model.")))
        for name in network.state_dict()
    }
    network.load_state_dict(state, assign=True)
    for module in network.modules():
        if hasattr(module, "position_ids"):
            module.position_ids = torch.arange(77)[None]
    network.eval()


def _compute(networks: dict[str, Any], scale: float) -> dict[str, Tensor]:
    ids = ClipTokenizer().encode(PROMPTS[:-1])  # transformers knows no embeddings
    padded_with_0 = ids.masked_fill((ids == 49407).cumsum(1) > 1, 0)
    first = networks["text_encoder"]
    found: dict[str, Tensor] = {}
    added = {}
    if "text_encoder_2" in networks:
        of_l = first(ids, output_hidden_states=True).hidden_states[-2]
        second = networks["text_encoder_2"](padded_with_0, output_hidden_states=True)
        found["text"] = torch.cat([of_l, second.hidden_states[-2]], dim=-1)
        found["pooled text_embeds"] = second.text_embeds
        sizes = [8 * SIDE, 8 * SIDE, 0, 0, 8 * SIDE, 8 * SIDE]
        added = {"text_embeds": second.text_embeds, "time_ids": torch.tensor([sizes] * len(ids))}
    else:
        found["text"] = first(padded_with_0).last_hidden_state
    noisy = noisy_latents()[: len(ids)]
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    unet, vae = networks["unet"], networks["vae"]
    times = TIMES[: len(ids)]
    found["U-Net"] = unet(noisy, times, found["text"], added_cond_kwargs=added or None).sample
    found["VAE, encoder"] = vae.encode(pixels).latent_dist.mean * scale
    found["VAE, decoder"] = vae.decode(noisy[:1] / scale).sample
    return found


@torch.no_grad()
def of_comfyui(path: Path, comfyui: Path) -> dict[str, Tensor]:
    """What ComfyUI computes: the text as CLIP Text Encode, and the U-Net in fp16 and with its own
    conditioning."""
    sys.path.insert(0, str(comfyui))
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_base
    import comfy.sd

    model, clip_model = comfy.sd.load_checkpoint_guess_config(
        str(path),
        output_vae=False,
        output_clip=True,
        embedding_directory=[str(_embedding(path).parent)],
    )[:2]
    encoded = [
        clip_model.encode_from_tokens(
            clip_model.tokenize(prompt.replace(EMBEDDING, f"embedding:{EMBEDDING}")),
            return_pooled=True,
        )
        for prompt in PROMPTS
    ]
    # ComfyUI encodes long prompts in chunks of 77 tokens; the trainer reads the first.
    found = {"text": torch.cat([hidden[:, :77] for hidden, _ in encoded])}
    base = model.model
    extra = {}
    if isinstance(base, comfy.model_base.SDXL):
        found["pooled text_embeds"] = torch.cat([pooled for _, pooled in encoded])
        size = {"width": 8 * SIDE, "height": 8 * SIDE}
        extra["y"] = torch.cat(
            [base.encode_adm(pooled_output=pooled, **size) for _, pooled in encoded]
        )
    unet = base.diffusion_model
    dtype = next(unet.parameters()).dtype
    found["U-Net"] = unet(
        noisy_latents().to(dtype),
        TIMES,
        context=found["text"].to(dtype),
        **{name: tensor.to(dtype) for name, tensor in extra.items()},
    )
    print("ComfyUI:", type(base).__name__, base.model_type, dtype)  # noqa: T201
    return {name: tensor.float() for name, tensor in found.items()}


def report(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    for name in right:
        ours_too = left[name][: len(right[name])]
        largest = (ours_too - right[name]).abs().max().item()
        print(f"{name:20} differs by {largest:.1e} of {right[name].std():.2g}")  # noqa: T201


def train_two_steps(path: Path, photos: Path) -> None:
    """With the leanest settings."""
    from trainer.loop import train
    from trainer.methods.full import FullFineTune
    from trainer.settings.config import (
        DatasetConfig,
        OptimizerConfig,
        OutputConfig,
        TrainingConfig,
    )

    config = TrainingConfig(
        base=path,
        dataset=DatasetConfig(photos=(photos,), prompt="a photo of sks dog", resolution=64),
        output=OutputConfig(folder=path.parent / "out", name="trained", state_every=0),
        optimizer=OptimizerConfig(name="Adafactor without momentum", learning_rate=1e-5),
        precision="bf16", weights="bf16", gradient_release=True, gradient_checkpointing=True,
        steps=2, batch_size=1,
    )  # fmt: skip
    started = time.monotonic()
    with Peak() as peak:
        result = train(config, FullFineTune(), device=CPU)
    print(f"{result.checkpoint}, moved {result.moved}")  # noqa: T201
    print(f"{time.monotonic() - started:.0f} s, peak {peak.num_bytes / 1e9:.1f} GB")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["write", "compare", "comfyui", "train"])
    parser.add_argument("path", type=Path)
    parser.add_argument("--comfyui", type=Path)
    parser.add_argument("--photos", type=Path)
    arguments = parser.parse_args()
    path = arguments.path
    if arguments.command == "write":
        write_files(path)
    elif arguments.command == "train":
        train_two_steps(path, arguments.photos)
    else:
        is_comfyui = arguments.command == "comfyui"
        found = of_comfyui(path, arguments.comfyui) if is_comfyui else theirs(path)
        gc.collect()
        report(ours(path), found)


if __name__ == "__main__":
    main()
