"""Networks with Stable Diffusion 1.5's shape and random weights, created on the device within
seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks import random_networks
from benchmarks.random_networks import Networks, Options
from trainer.families.constants import CONSTANTS_KEY
from trainer.families.sd1 import SD1
from trainer.families.tokenizer import MERGES, ClipTokenizer


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Options of diffusers' and transformers' classes that differ from their defaults."""

    unet: Options
    vae: Options
    text_encoder: Options
    resolution: int
    """Width and height to train at, in pixels."""


SD15 = Shape(**random_networks.SD15, resolution=512)
HALF = Shape(**random_networks.SD15_HALF_WIDTH, resolution=256)
"""For measuring on a CPU."""
TINY = Shape(**random_networks.TINY, resolution=32)
"""For testing the program without a GPU."""


def build(shape: Shape, device: torch.device) -> Networks:
    """Networks in fp16, always with the same weights. Matrices and kernels preserve the scale of
    activations, and norms are identities."""
    networks = plan(shape)
    generator = torch.Generator(device).manual_seed(0)
    for network in networks:
        fill(network.half().to_empty(device=device), generator)
    return networks


def plan(shape: Shape) -> Networks:
    """Networks on torch's meta device, which need no memory."""
    with torch.device("meta"):
        return random_networks.construct(
            unet=shape.unet, vae=shape.vae, text_encoder=shape.text_encoder
        )


@torch.no_grad()
def fill(network: nn.Module, generator: torch.Generator) -> None:
    """Set the weights of a network as `build` says."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(0 if name.endswith("bias") else 1)


def write_checkpoint(networks: Networks, path: Path, resolution: int) -> None:
    """Write one file that the trainer can read."""
    tensors = SD1.checkpoint_tensors(*networks)
    metadata = {"format": "pt", CONSTANTS_KEY: json.dumps({"resolution": resolution})}
    save_file({name: t.contiguous().cpu() for name, t in tensors.items()}, path, metadata)


def write_folder(networks: Networks, folder: Path) -> None:
    """Write a folder in diffusers' layout, with what its DreamBooth script reads."""
    from diffusers import DDPMScheduler

    unet, vae, text_encoder = networks
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    # The script loads this one in the file's number format, and can only train it in fp32.
    text_encoder.float().save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    _write_tokenizer(folder / "tokenizer", len(text_encoder.get_input_embeddings().weight))


def _write_tokenizer(folder: Path, num_entries: int) -> None:
    folder.mkdir()
    merges = MERGES.read_text("utf-8")
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", "utf-8")
    tokens = ClipTokenizer()._tokenizer.get_vocab()
    assert len(tokens) == num_entries
    (folder / "vocab.json").write_text(json.dumps(tokens), "utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
