"""A VAE from another file than the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.random_networks import TINY
from tests.conftest import TINY_METADATA
from trainer import families
from trainer.__main__ import main
from trainer.families import key_maps
from trainer.families.files import CheckpointFile
from trainer.families.layouts import VAE
from trainer.families.vae_file import open_vae
from trainer.loop import train
from trainer.methods.full import FullFineTune
from trainer.runs import disk_space
from trainer.settings.config import ModelOptions, TrainingConfig

CPU = torch.device("cpu")
Tensors = dict[str, Tensor]


def changed_vae(tensors: Tensors) -> Tensors:
    """The VAE's tensors under their own names, with other values than the checkpoint's."""
    return {k.removeprefix(VAE): v * 0.5 for k, v in tensors.items() if k.startswith(VAE)}


@pytest.fixture
def without_vae(tiny_tensors: Tensors, tmp_path: Path) -> Path:
    path = tmp_path / "base.safetensors"
    tensors = {k: v for k, v in tiny_tensors.items() if not k.startswith(VAE)}
    save_file(tensors, path, metadata=TINY_METADATA)
    return path


@pytest.fixture
def vae(tiny_tensors: Tensors, tmp_path: Path) -> Path:
    path = tmp_path / "vae.safetensors"
    save_file({**changed_vae(tiny_tensors), "loss.logvar": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize("kind", ["alone", "in fp16", "pickle", "with prefix", "checkpoint"])
def test_a_checkpoint_without_a_vae_trains_with_another_files(
    one_photo_config: TrainingConfig,
    without_vae: Path,
    tiny_tensors: Tensors,
    tmp_path: Path,
    kind: str,
) -> None:
    expected = changed_vae(tiny_tensors)
    if kind == "in fp16":
        expected = {key: tensor.half() for key, tensor in expected.items()}
    path = tmp_path / ("vae.pt" if kind == "pickle" else "vae.safetensors")
    prefix = VAE if kind in ("with prefix", "checkpoint") else ""
    tensors = {prefix + key: tensor for key, tensor in expected.items()}
    if kind == "checkpoint":
        tensors = {**tiny_tensors, **tensors}
    if kind == "pickle":
        torch.save({"state_dict": tensors}, path)
    else:
        save_file(tensors, path)
    config = replace(one_photo_config, base=without_vae, vae=path)
    result = train(config, FullFineTune(), device=CPU)
    written = CheckpointFile(result.checkpoint)
    assert written.shapes.keys() == tiny_tensors.keys()
    for key, tensor in expected.items():
        assert torch.equal(written.tensor(VAE + key), tensor)
    assert written.metadata["ss_vae_name"] == path.name
    assert written.metadata["ss_new_vae_hash"] == CheckpointFile(path).sha256()
    families.load(result.checkpoint, CPU)  # complete: needs no VAE


def test_a_vae_replaces_the_checkpoints_own(
    one_photo_config: TrainingConfig, tiny_checkpoint: Path, tiny_tensors: Tensors, vae: Path
) -> None:
    model = families.load(tiny_checkpoint, CPU, options=ModelOptions(vae=vae))
    key = "decoder.conv_out.weight"
    assert torch.equal(model.vae.decoder.conv_out.weight, tiny_tensors[VAE + key] * 0.5)
    trainable = FullFineTune().attach(model, one_photo_config, [])
    found = disk_space.file_size(trainable, trainable.files[0])
    assert found == pytest.approx(tiny_checkpoint.stat().st_size, rel=1e-3)  # the header differs


def test_the_commands_that_draw_accept_a_vae(without_vae: Path, vae: Path, tmp_path: Path) -> None:
    shared = ["--vae", str(vae), "--device", "cpu", "--folder", str(tmp_path / "out")]
    priors = ["priors", "--base", str(without_vae), "--prompt", "a dog", "--num-images", "1",
              "--sampling.steps", "1"]  # fmt: skip
    sample = ["sample", "--checkpoint", str(without_vae), "--prompts", "a dog", "--steps", "1"]
    compare = ["compare", "--checkpoints", str(without_vae), "--prompts", "a dog", "--steps", "1"]
    for command in (priors, sample, compare):
        assert main([*command, *shared]) == 0


def test_class_images_of_another_vae_are_not_reused(
    tiny_checkpoint: Path, vae: Path, tmp_path: Path
) -> None:
    folder = str(tmp_path / "out")
    arguments = ["priors", "--base", str(tiny_checkpoint), "--prompt", "a dog", "--num-images", "1",
                 "--sampling.steps", "1", "--device", "cpu", "--folder", folder]  # fmt: skip
    for further in ([], ["--vae", str(vae)], ["--prediction-type", "v"], []):
        assert main([*arguments, *further]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 3


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "decoder.mid_block.resnets.0.conv1.weight",
            "The VAE 'vae.safetensors' is in the layout of diffusers. Choose the same VAE as a "
            "single file for ComfyUI, such as vae-ft-mse-840000-ema-pruned.safetensors.",
        ),
        (
            "taesd_decoder.1.weight",
            "'vae.safetensors' contains no VAE. Choose a VAE for the same kind of model, such as "
            "vae-ft-mse-840000-ema-pruned.safetensors for Stable Diffusion 1, or a complete "
            "checkpoint.",
        ),
    ],
)
def test_an_unsuitable_vae_is_refused(
    tmp_path: Path, tiny_checkpoint: Path, key: str, message: str
) -> None:
    save_file({key: torch.zeros(1)}, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        open_vae(tmp_path / "vae.safetensors")
    assert str(error.value) == message
    assert open_vae(tiny_checkpoint).shapes


def test_a_vae_of_diffusers_is_read_once_it_is_a_single_file_for_comfyui(
    tmp_path: Path, without_vae: Path
) -> None:
    state = {k: v.contiguous() for k, v in AutoencoderKL(**TINY["vae"]).state_dict().items()}
    path = tmp_path / "vae.safetensors"
    save_file(state, path)
    with pytest.raises(ValueError, match="layout of diffusers"):
        open_vae(path)
    tensors = key_maps.in_file_layout(state, key_maps.vae_places(state))
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    families.load(without_vae, CPU, options=ModelOptions(vae=path))


def test_a_vae_with_other_latents_is_refused(without_vae: Path, vae: Path, tmp_path: Path) -> None:
    state = AutoencoderKL(latent_channels=16, **TINY["vae"]).state_dict()
    tensors = key_maps.in_file_layout(state, key_maps.vae_places(state))
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "flux.safetensors")
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        families.load(without_vae, CPU, options=ModelOptions(vae=tmp_path / "flux.safetensors"))
    assert str(error.value) == (
        "The VAE of 'flux.safetensors' has 16 latent channels, but the U-Net of 'base.safetensors' "
        "has 4. Choose a VAE for Stable Diffusion 1."
    )
    families.load(without_vae, CPU, options=ModelOptions(vae=vae))


def test_a_damaged_vae_is_named(without_vae: Path, tiny_tensors: Tensors, tmp_path: Path) -> None:
    tensors = changed_vae(tiny_tensors)
    del tensors["decoder.conv_out.weight"]
    save_file(tensors, tmp_path / "vae.safetensors")
    with pytest.raises(ValueError, match=r"^'vae.safetensors' lacks the weight 'first_stage"):
        families.load(without_vae, CPU, options=ModelOptions(vae=tmp_path / "vae.safetensors"))
