"""Small Stable Diffusion 1 checkpoints with random weights, and disks that fill up.

The tiny checkpoint has `TINY` networks (see `benchmarks/random_networks.py`), CLIP's vocabulary and
a native size of 16 x 16 pixels."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.random_networks import FOUR_LEVELS, TINY, Networks, Options, Shape, construct
from tests.trainer.families import generations
from trainer import families
from trainer.families.base import ModelFamily
from trainer.families.sd1 import SD1

TINY_METADATA = {"format": "pt", "dreambooth.constants": '{"resolution": 16}'}

LONGEST = {"test_demo.py", "test_soak.py", "test_subjects.py", "test_real_size.py"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest test files first. Otherwise one worker would still be busy with such a file
    after the others have finished, or two workers would share it and both build its fixtures."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.name != "posix" and item.get_closest_marker("posix"):
        pytest.skip("needs a POSIX system, such as Linux or macOS")


@pytest.fixture(scope="session")
def build_networks() -> Callable[..., Networks]:
    """Builds U-Net, VAE and text encoder from the options of a `Shape`. The weights are random and
    the same in every test run."""
    return _build_networks


@pytest.fixture(scope="session")
def four_levels() -> Shape:
    return FOUR_LEVELS


@pytest.fixture(scope="session")
def tiny_networks() -> Networks:
    """The networks of the tiny checkpoint. Tests must not change them."""
    return _build_networks(**TINY)


@pytest.fixture(scope="session")
def tiny_tensors(tiny_networks: Networks) -> dict[str, Tensor]:
    """The tensors of the tiny checkpoint in fp32. Tests must not change them."""
    tensors = SD1.checkpoint_tensors(*tiny_networks)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The file of the tiny checkpoint in fp32. Tests must not change it."""
    path = tmp_path_factory.mktemp("checkpoints") / "tiny.safetensors"
    save_file(tiny_tensors, path, metadata=TINY_METADATA)
    return path


@pytest.fixture
def tiny_model(tiny_checkpoint: Path) -> ModelFamily:
    """The tiny checkpoint on the CPU, loaded anew for each test."""
    return families.load(tiny_checkpoint, torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_sd2_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion 2 checkpoint in fp32. Tests must not change it."""
    return generations.write(tmp_path_factory.mktemp("sd2") / "sd2.safetensors", "2")


@pytest.fixture(scope="session")
def tiny_xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Stable Diffusion XL checkpoint in fp32. Tests must not change it."""
    return generations.write(tmp_path_factory.mktemp("xl") / "xl.safetensors", "XL")


@pytest.fixture
def xl_model(tiny_xl_checkpoint: Path) -> ModelFamily:
    """The small Stable Diffusion XL checkpoint on the CPU, loaded anew for each test."""
    return families.load(tiny_xl_checkpoint, torch.device("cpu"))


@pytest.fixture(scope="session")
def draw_photos() -> Callable[..., Path]:
    """Writes a number of PNG files of random pixels into a new folder, and returns the folder."""

    def draw(folder: Path, count: int, *, side: int = 16, seed: int = 0) -> Path:
        folder.mkdir()
        rng = np.random.default_rng(seed)
        for number in range(count):
            pixels = rng.integers(0, 256, size=(side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return folder

    return draw


@pytest.fixture(scope="session")
def save_fp16_checkpoint() -> Callable[[Shape, Path], Path]:
    """Writes a checkpoint of a shape in fp16, and returns its path."""

    def save(shape: Shape, path: Path) -> Path:
        tensors = SD1.checkpoint_tensors(*_build_networks(**shape))
        save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
        return path

    return save


@pytest.fixture
def file_size_limit() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which no file grows beyond a number of bytes, as on a full disk. POSIX only."""
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
    """Mounts a disk of a number of bytes in memory, and returns its folder."""
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


def _build_networks(*, unet: Options, vae: Options, text_encoder: Options) -> Networks:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        networks = construct(unet=unet, vae=vae, text_encoder=text_encoder)
        for network in networks:
            _shake(network)
    return networks


@torch.no_grad()
def _shake(network: nn.Module) -> None:
    """Move the weights of norms and the biases away from 1 and 0. Tests would not notice if two
    that are all 1 or all 0 were swapped."""
    for parameter in network.requires_grad_(False).eval().parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
