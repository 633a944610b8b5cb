"""A tiny Stable Diffusion 1 with random weights, in a file like the real one: a U-Net of 32 and 64
channels, a VAE that halves each side, CLIP's vocabulary, made for 16 x 16 pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer import families
from trainer.families.base import ModelFamily
from trainer.families.sd1 import checkpoint_tensors

TINY_METADATA = {"format": "pt", "dreambooth.constants": '{"resolution": 16}'}

Networks = tuple[nn.Module, nn.Module, nn.Module]

LONGEST = {"test_demo.py", "test_soak.py", "test_subjects.py", "test_real_size.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first: at the end a worker would be alone with one of them, and two workers that
    share its tests would both make what they need."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("needs a POSIX system, such as Linux or macOS")


@pytest.fixture(scope="session")
def build_networks() -> Callable[..., Networks]:
    """Builds U-Net, VAE and text encoder from options of diffusers' and transformers' own classes,
    with weights that are the same in every test run."""
    return _build_networks


@pytest.fixture(scope="session")
def four_levels() -> dict[str, dict[str, Any]]:
    """Options of Stable Diffusion 1.5 but for its widths: levels, layers and the attention's places
    are its own, which for the U-Net are diffusers' defaults."""
    return {
        "unet": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 24},
        "vae": {
            "block_out_channels": (32, 32, 64, 64),
            "layers_per_block": 2,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        },
        "text_encoder": {"hidden_size": 24, "intermediate_size": 96, "num_hidden_layers": 2},
    }


@pytest.fixture(scope="session")
def tiny_networks() -> Networks:
    """Those in the tiny checkpoint's file. Not to be changed."""
    return _build_networks(
        unet={
            "block_out_channels": (32, 64),
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "cross_attention_dim": 24,
        },
        vae={
            "block_out_channels": (32, 32),
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
        },
        text_encoder={"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2},
    )


@pytest.fixture(scope="session")
def tiny_tensors(tiny_networks: Networks) -> dict[str, Tensor]:
    """The tiny checkpoint's tensors, fp32. Not to be changed."""
    tensors = checkpoint_tensors(*tiny_networks)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny checkpoint's file, fp32. Not to be changed."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_file(tiny_tensors, path, metadata=TINY_METADATA)
    return path


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> ModelFamily:
    """The tiny checkpoint on the CPU, fresh for each test."""
    return families.load(tiny_checkpoint, torch.device("cpu"))


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """Inside, no file can grow beyond so many bytes, as on a full disk. On POSIX systems only."""
    import resource

    @contextmanager
    def limited(num_bytes: int) -> Iterator[None]:
        before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, most))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))

    return limited


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many bytes, in memory, and gives its folder."""
    folder = tmp_path / "disk"

    def make(num_bytes: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this user may not mount a disk in memory")
        return folder

    yield make
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _build_networks(
    *, unet: dict[str, Any], vae: dict[str, Any], text_encoder: dict[str, Any]
) -> Networks:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    clip = {"vocab_size": 49408, "num_attention_heads": 12, "hidden_act": "quick_gelu"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = (
            UNet2DConditionModel(**{"attention_head_dim": 8, **unet}),
            AutoencoderKL(**{"latent_channels": 4, "layers_per_block": 1, **vae}),
            CLIPTextModel(CLIPTextConfig(**{**clip, **text_encoder})),
        )
        for network in networks:
            _shake(network)
    return networks


@torch.no_grad()
def _shake(network: nn.Module) -> None:
    """Move norms and biases off 1 and 0, where an exchanged pair would pass unseen."""
    for parameter in network.requires_grad_(False).eval().parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
