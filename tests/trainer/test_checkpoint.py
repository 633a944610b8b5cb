"""Written checkpoints: their content, atomic writes, and which files stay in the folder."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.checkpoint import (
    CheckpointWriter,
    WeightChange,
    file_dtype,
    prepare_folder,
    weight_change,
    write_new,
)
from trainer.families.files import CheckpointFile
from trainer.settings.config import OutputConfig
from trainer.storage.locks import locked
from trainer.storage.tensor_file import TensorToWrite

ROOT = Path(__file__).parents[2]
NAME = "model.diffusion_model.out.2.bias"
TENSORS = {"a": TensorToWrite.of(torch.zeros(3))}


def writer(checkpoint: Path, folder: Path, **options: object) -> CheckpointWriter:
    return CheckpointWriter(CheckpointFile(checkpoint), OutputConfig(folder=folder, **options))


@pytest.fixture
def changed(tiny_checkpoint):
    return {NAME: load_file(tiny_checkpoint)[NAME].float() + 0.25}


def test_only_the_trained_tensors_differ(tiny_checkpoint, tmp_path, changed):
    path = writer(tiny_checkpoint, tmp_path).save_final(changed, {"made": "here"})
    before, after = load_file(tiny_checkpoint), load_file(path)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor) == (name != NAME)
    torch.testing.assert_close(after[NAME].float(), changed[NAME].to(before[NAME].dtype).float())
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made": "here"}


def test_trained_tensors_get_the_chosen_dtype(tiny_checkpoint, tmp_path, changed):
    path = writer(tiny_checkpoint, tmp_path, dtype="bf16").save_final(changed, {})
    assert load_file(path)[NAME].dtype == torch.bfloat16


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_only_the_best_file_is_kept_and_is_renamed_at_the_end(tiny_checkpoint, tmp_path, changed):
    kept = writer(tiny_checkpoint, tmp_path, name="dog")
    for step in (2, 4):
        kept.save_best(step, {NAME: changed[NAME] * step}, {})
    assert names(tmp_path) == ["dog-best-step000004.safetensors"]
    # After a resume, the files written before are known.
    later = CheckpointWriter(kept.original, kept.output, list(tmp_path.iterdir()))
    path = later.publish_best(4)
    assert names(tmp_path) == [path.name] == ["dog-best.safetensors"]
    dtype = load_file(tiny_checkpoint)[NAME].dtype
    assert torch.equal(load_file(path)[NAME], (changed[NAME] * 4).to(dtype))


@pytest.mark.parametrize("step", [None, 6])
def test_a_file_that_is_not_the_best_at_the_end_is_deleted(
    tiny_checkpoint, tmp_path, changed, step
):
    (tmp_path / "dog-best.safetensors").touch()  # another run's
    kept = writer(tiny_checkpoint, tmp_path, name="dog")
    kept.save_best(2, changed, {})
    assert kept.publish_best(step) is None
    assert names(tmp_path) == ["dog-best.safetensors"]
    kept.save_best(2, changed, {})
    assert kept.publish_best(2).name == "dog-best_00001.safetensors"


def test_an_existing_file_is_never_overwritten(tmp_path):
    paths = [write_new(tmp_path, "dog", TENSORS, {}) for _ in range(3)]
    assert [path.name for path in paths] == [
        "dog.safetensors", "dog_00001.safetensors", "dog_00002.safetensors",
    ]  # fmt: skip


def test_a_checkpoint_has_the_permissions_of_other_new_files(tmp_path):
    (tmp_path / "plain").touch()
    path = write_new(tmp_path, "dog", TENSORS, {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        write_new(tmp_path, "dog", TENSORS, {"not": 5})
    assert list(tmp_path.iterdir()) == []


WRITE_AND_DIE = """
import os, sys, torch
from pathlib import Path
from trainer.checkpoint import write_new
from trainer.storage.tensor_file import TensorToWrite
tensors = {"a": TensorToWrite((3,), torch.float32, lambda: os._exit(9))}
write_new(Path(sys.argv[1]), "dog", tensors, {})
"""


def test_only_the_work_folders_of_killed_processes_are_deleted(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(tmp_path)], cwd=ROOT)
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert (left / "whole.safetensors").exists()
    busy = tmp_path / ".cat.1.part"
    busy.mkdir()
    with locked(busy):
        write_new(tmp_path, "dog", TENSORS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [".cat.1.part", "dog.safetensors"]


def test_unfinished_files_of_other_programs_stay(tmp_path):
    """Other programs also use names like .download.part."""
    (tmp_path / ".download.part").write_bytes(b"half")
    (tmp_path / ".other.1.part").mkdir()
    prepare_folder(tmp_path)
    write_new(tmp_path, "dog", TENSORS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".download.part", ".other.1.part", "dog.safetensors",
    ]  # fmt: skip


def test_prepare_folder_creates_it_and_deletes_abandoned_work_folders(tmp_path):
    left = tmp_path / "new" / "out" / ".dog.1.part"
    left.mkdir(parents=True)
    (left / "lock").touch()
    (left / ".tmpabcdef").write_bytes(b"half a checkpoint")
    prepare_folder(tmp_path / "new" / "out")
    assert list((tmp_path / "new" / "out").iterdir()) == []


@pytest.mark.posix
def test_a_read_only_folder_is_refused(small_disk):
    disk = small_disk(1 << 20)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError) as caught:
        prepare_folder(disk)
    message = str(caught.value)
    assert message.startswith(f"Cannot write to the folder '{disk}': [Errno 30] Read-only file ")
    assert message.endswith(". Make it writable, or choose another folder.")


def test_no_file_has_the_final_name_before_it_is_complete(tmp_path):
    seen = []

    def compute():
        seen.append([p.name for p in tmp_path.glob("*.safetensors")])
        return torch.zeros(3)

    path = write_new(tmp_path, "dog", {"a": TensorToWrite((3,), torch.float32, compute)}, {})
    assert seen == [[]]
    assert path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["dog.safetensors"]


def test_a_checkpoint_is_synced_to_disk_before_it_is_renamed(tmp_path, disk_events, safely_written):
    path = write_new(tmp_path, "dog", TENSORS, {})
    assert disk_events == safely_written(path)


def test_existing_files_are_kept_on_file_systems_without_hard_links(tmp_path, monkeypatch):
    """Such as exFAT."""

    def refuse(*_: object) -> None:
        raise OSError("Operation not supported")

    monkeypatch.setattr("os.link", refuse)
    paths = [
        write_new(tmp_path, "dog", {"a": TensorToWrite.of(torch.full((3,), n))}, {}) for n in (1, 2)
    ]
    assert names(tmp_path) == ["dog.safetensors", "dog_00001.safetensors"]
    assert [load_file(path)["a"][0].item() for path in paths] == [1, 2]


@pytest.mark.parametrize("kind", ["step", "best"])
def test_the_previous_file_is_kept_until_the_next_is_written(
    tiny_checkpoint, tmp_path, changed, kind
):
    output = writer(tiny_checkpoint, tmp_path, name="dog", keep=1)
    save = output.save_step if kind == "step" else output.save_best
    kept = save(10, changed, {})
    with pytest.raises(TypeError):
        save(20, changed, {"not": 5})
    assert names(tmp_path) == [kept.name]


def test_only_the_newest_intermediate_checkpoints_are_kept(tiny_checkpoint, tmp_path, changed):
    output = writer(tiny_checkpoint, tmp_path, name="dog", keep=2)
    for step in (10, 20, 30):
        output.save_step(step, changed, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dog-step000020.safetensors", "dog-step000030.safetensors",
    ]  # fmt: skip


def test_weight_change_equals_the_formula(tiny_checkpoint, tmp_path, changed):
    old = load_file(tiny_checkpoint)[NAME].double()
    new = changed[NAME].to(load_file(tiny_checkpoint)[NAME].dtype).double()
    change = weight_change(writer(tiny_checkpoint, tmp_path), changed)
    length = pytest.approx(((new - old).norm() / old.norm()).item())
    assert change == WeightChange(length, 1, length, pytest.approx(1))


def test_weight_change_ignores_what_the_dtype_rounds_away(tmp_path):
    base, old = tmp_path / "half.safetensors", torch.arange(1.0, 9.0)
    save_file({NAME: old.half()}, base)
    moved = [weight_change(writer(base, tmp_path), {NAME: old * (1 + x)}) for x in (1e-6, 0.25)]
    assert moved == [
        WeightChange(0, 0, pytest.approx(1e-6, rel=0.1), 0),
        WeightChange(pytest.approx(0.25), 1, pytest.approx(0.25), pytest.approx(1)),
    ]


def test_the_similarity_is_the_cosine_between_both_changes(tmp_path):
    """In fp16 the neighbours of 1 are 2^-10 and 2^-11 away."""
    base, old = tmp_path / "half.safetensors", torch.ones(4)
    save_file({NAME: old.half()}, base)
    new = old + 2**-10 * torch.tensor([1.0, 0.4, 0.4, 0.0])
    change = weight_change(writer(base, tmp_path), {NAME: new})
    assert change.similarity == pytest.approx(1 / (1 + 2 * 0.4**2) ** 0.5, abs=1e-4)
    assert change.share == 0.25


@pytest.mark.parametrize(
    ("original", "choice", "expected"),
    [
        (torch.float16, "as input", torch.float16),
        (torch.float32, "as input", torch.float32),
        (torch.float8_e4m3fn, "as input", torch.float16),
        (torch.float8_e5m2, "as input", torch.float16),
        (torch.float8_e5m2, "bf16", torch.bfloat16),
        (torch.float16, "fp32", torch.float32),
    ],
)
def test_trained_weights_are_never_written_in_8_bits(original, choice, expected):
    assert file_dtype(original, choice) is expected


def test_only_intermediate_files_of_its_folder_are_deleted(tiny_checkpoint, tmp_path, changed):
    """Whatever a manifest that others wrote lists."""
    own = tmp_path / "out"
    listed = [
        tmp_path / "dreambooth-step000001.safetensors",
        own / "thesis.txt",
        own / "dreambooth-step.safetensors",
        own / "dreambooth-step000001.txt",
        own / "dreambooth-step000002.safetensors",
    ]
    own.mkdir()
    for path in listed:
        path.touch()
    made = writer(tiny_checkpoint, own, keep=1)
    made = CheckpointWriter(made.original, made.output, listed)
    assert list(made.intermediate) == [2]
    made.save_step(3, changed, {})
    assert [path.exists() for path in listed] == [True, True, True, True, False]
