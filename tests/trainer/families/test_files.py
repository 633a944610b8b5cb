import hashlib
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from trainer.families.files import CheckpointFile, remember_sha256

TENSORS = {
    "fp32": torch.arange(6, dtype=torch.float32).view(2, 3) / 7,
    "fp16": torch.tensor([1 / 3, -2.0], dtype=torch.float16),
    "bf16": torch.tensor([[1 / 3]], dtype=torch.bfloat16),
    "int64": torch.arange(3),
}
SHAPES = {"fp32": (2, 3), "fp16": (2,), "bf16": (1, 1), "int64": (3,)}


@pytest.fixture
def safetensors(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"modelspec.title": "a model"})
    return path


def assert_holds_tensors(file: CheckpointFile) -> None:
    assert file.shapes == SHAPES
    assert file.dtypes == {name: tensor.dtype for name, tensor in TENSORS.items()}
    for name, tensor in TENSORS.items():
        read = file.tensor(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        CheckpointFile(path)
    return str(error.value)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------ reading


def test_a_safetensors_file_returns_its_tensors_and_metadata(safetensors: Path) -> None:
    file = CheckpointFile(safetensors)
    assert_holds_tensors(file)
    assert file.metadata == {"modelspec.title": "a model"}
    assert file.path == safetensors


def test_a_file_without_metadata_has_an_empty_dictionary(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert CheckpointFile(tmp_path / "model.safetensors").metadata == {}


def test_the_extension_may_be_upper_case(safetensors: Path) -> None:
    assert_holds_tensors(
        CheckpointFile(safetensors.rename(safetensors.with_suffix(".SAFETENSORS")))
    )


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".PKL"])
@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("is_nested", [True, False])
def test_a_pickled_file_returns_its_tensors(
    tmp_path: Path, ending: str, is_zip: bool, is_nested: bool
) -> None:
    path = tmp_path / f"model{ending}"
    contents = {"state_dict": TENSORS, "global_step": 7} if is_nested else {**TENSORS, "step": 7}
    torch.save(contents, path, _use_new_zipfile_serialization=is_zip)
    file = CheckpointFile(path)
    assert_holds_tensors(file)
    assert file.metadata == {}


@pytest.mark.parametrize(
    "contents",
    [
        {"model": TENSORS, "optimizer": {"state": {}}, "epoch": 3},
        {"model": {"state_dict": TENSORS}},
        {"anything": TENSORS},
        {"state_dict": TENSORS, "model": {"other": torch.zeros(1)}},
        {"module": TENSORS, "global_steps": 1},
        {"state_dict": {f"module.{name}": tensor for name, tensor in TENSORS.items()}},
    ],
)
def test_weights_are_found_under_the_names_that_trainers_use(
    tmp_path: Path, contents: object
) -> None:
    torch.save(contents, tmp_path / "model.ckpt")
    assert_holds_tensors(CheckpointFile(tmp_path / "model.ckpt"))


@pytest.mark.parametrize("ending", [".sft", ".safetensors"])
def test_names_of_data_parallel_lose_their_prefix(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    save_file({f"module.{name}": tensor for name, tensor in TENSORS.items()}, path)
    assert_holds_tensors(CheckpointFile(path))


@pytest.mark.parametrize("ending", [".bin", ".pth", ".pkl"])
def test_no_code_in_a_file_is_run_whatever_its_ending(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    torch.save({"model": TENSORS, "hook": Path("x")}, path)
    assert refusal(path) == (
        f"'model{ending}' holds more than numbers: opening it would run code from the file, which "
        "could do anything on this computer. Choose the .safetensors version of this checkpoint."
    )
    save_file(TENSORS, tmp_path / "model.safetensors")
    assert CheckpointFile(tmp_path / "model.safetensors").shapes.keys() == TENSORS.keys()


def test_tensors_of_a_pickled_file_share_no_memory(tmp_path: Path) -> None:
    tensor = torch.ones(1).expand(4, 4)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "model.ckpt")
    file = CheckpointFile(tmp_path / "model.ckpt")
    a, b = file.tensor("a"), file.tensor("b")
    assert a.is_contiguous()
    assert a.data_ptr() != b.data_ptr()
    assert torch.equal(a, torch.ones(4, 4))


def test_callbacks_in_the_original_checkpoints_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    contents = {
        "state_dict": TENSORS,
        "callbacks": {callback: {"monitor": "val/loss", "best": np.float64(0.5)}},
    }
    torch.save(contents, tmp_path / "model.ckpt")
    assert_holds_tensors(CheckpointFile(tmp_path / "model.ckpt"))
    # The stand-ins for this file do not make torch.load accept it elsewhere.
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.ckpt", weights_only=True)


def test_sha256_covers_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(700_000)}, path)
    assert CheckpointFile(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_hashed_again_only_after_a_change(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    first = CheckpointFile(path).sha256()
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert CheckpointFile(path).sha256() == first  # from the cache
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert CheckpointFile(path).sha256() == hashlib.sha256(content).hexdigest()


def test_a_known_hash_is_not_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    remember_sha256(path, "known")
    assert CheckpointFile(path).sha256() == "known"


# ----------------------------------------------------------------- refusals


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gone.safetensors"
    with pytest.raises(FileNotFoundError) as error:
        CheckpointFile(path)
    assert str(error.value) == (
        f"There is no file {path}. Name an existing .safetensors or .ckpt checkpoint."
    )


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path) == (
        f"{tmp_path} is a folder, not a checkpoint. Choose a single .safetensors or .ckpt file."
    )


def test_another_extension_is_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path / "flux.gguf", b"GGUF")) == (
        "'flux.gguf' ends in '.gguf', but checkpoints end in .safetensors, .ckpt, .sft, .pt, .pth, "
        ".bin, .pkl. Choose one of those."
    )


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt"])
@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\n <html lang='en'>"])
def test_a_web_page_is_refused(tmp_path: Path, ending: str, page: bytes) -> None:
    assert refusal(write(tmp_path / f"model{ending}", page)) == (
        f"'model{ending}' is a web page, not a checkpoint: the download failed. Download it again."
    )


def test_a_git_lfs_pointer_is_refused(tmp_path: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    assert refusal(write(tmp_path / "model.safetensors", pointer)) == (
        "'model.safetensors' is a Git LFS pointer, not a checkpoint: only the pointer was "
        "downloaded. Download the file itself, or run 'git lfs pull'."
    )


@pytest.mark.parametrize("contents", [{}, [1, 2], {"step": 5}])
def test_a_file_without_tensors_is_refused(tmp_path: Path, contents: object) -> None:
    torch.save(contents, tmp_path / "model.ckpt")
    assert refusal(tmp_path / "model.ckpt") == (
        "'model.ckpt' holds no tensors. Choose a Stable Diffusion checkpoint."
    )


# ------------------------------------------------------------------- weights


def shape_refusal(file: CheckpointFile, key: str) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole message is compared)
        file.shape(key, 4)
    return str(error.value)


def test_a_missing_or_wrong_weight_is_named(safetensors: Path) -> None:
    file = CheckpointFile(safetensors)
    assert file.shape("fp32", 2) == (2, 3)
    assert shape_refusal(file, "conv.weight") == (
        "'model.safetensors' lacks the weight 'conv.weight', which its other weights call for. "
        "The file is incomplete: download it again, or choose another."
    )
    assert shape_refusal(file, "fp32") == (
        "The weight 'fp32' of 'model.safetensors' has the shape [2, 3], but must have 4 "
        "dimensions, all above 0. The file is damaged: download it again, or choose another."
    )
    assert shape_refusal(file, "int64") == (
        "The weight 'int64' of 'model.safetensors' holds int64 numbers, but only floating-point "
        "numbers can be trained. Choose the fp32, fp16 or bf16 version of this checkpoint."
    )
