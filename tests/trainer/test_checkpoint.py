"""Written checkpoints: their content, atomic writes, and which files stay in the folder."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.checkpoint import (
    OF_ONE_WRITE,
    CheckpointWriter,
    file_dtype,
    prepare_folder,
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
    path = later.publish_best(4, {})
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
    assert kept.publish_best(step, {}) is None
    assert names(tmp_path) == ["dog-best.safetensors"]
    kept.save_best(2, changed, {})
    assert kept.publish_best(2, {}).name == "dog-best_00001.safetensors"


def resumed(checkpoint: Path, folder: Path) -> CheckpointWriter:
    """The writer of a session that resumes a run, but knows of no file."""
    options = OutputConfig(folder=folder, name="dog", keep=1)
    return CheckpointWriter(CheckpointFile(checkpoint), options, is_resumed=True)


def of_step(step: int, loss: str = "a", started: str = "0") -> dict[str, str]:
    return dict(zip(OF_ONE_WRITE, (started, str(step), loss), strict=True))


SAVED = {"step": lambda w: w.save_step, "best": lambda w: w.save_best}


@pytest.mark.parametrize("kind", SAVED)
def test_what_a_killed_session_has_written_is_not_written_again(
    tiny_checkpoint, tmp_path, changed, kind
):
    def save(writer, step, loss):
        return SAVED[kind](writer)(step, changed, of_step(step, loss))

    other, own = (save(writer(tiny_checkpoint, tmp_path, name="dog"), 2, loss) for loss in "ab")
    assert other != own
    killed = resumed(tiny_checkpoint, tmp_path)
    assert save(killed, 2, "b") == own
    assert names(tmp_path) == [other.name, own.name]
    later = save(killed, 3, "c")  # it also knows the file again, and deletes it
    assert names(tmp_path) == sorted([other.name, later.name])


def test_a_result_that_a_killed_session_has_written_is_not_written_again(
    tiny_checkpoint, tmp_path, changed
):
    (tmp_path / "dog.safetensors").write_text("another program's")
    own = writer(tiny_checkpoint, tmp_path, name="dog").save_final(changed, of_step(2))
    killed = resumed(tiny_checkpoint, tmp_path)
    assert killed.save_final(changed, of_step(2)) == own == tmp_path / "dog_00001.safetensors"
    others = (of_step(3), of_step(2, "b"), of_step(2, started="1"), {})
    assert [killed.save_final(changed, other).name for other in others] == [
        f"dog_0000{number}.safetensors" for number in (2, 3, 4, 5)
    ]


def test_a_new_run_always_writes_its_own_result(tiny_checkpoint, tmp_path, changed):
    paths = [writer(tiny_checkpoint, tmp_path).save_final(changed, of_step(2)) for _ in range(2)]
    assert paths[0] != paths[1]


@pytest.mark.parametrize("is_unlinked", [False, True])
def test_the_best_file_that_a_killed_session_has_renamed_is_found(
    tiny_checkpoint, tmp_path, changed, is_unlinked
):
    first = writer(tiny_checkpoint, tmp_path, name="dog")
    best = first.save_best(2, changed, of_step(2))
    os.link(best, tmp_path / "dog-best.safetensors")
    if is_unlinked:
        best.unlink()
    killed = CheckpointWriter(first.original, first.output, [best], is_resumed=True)
    assert killed.publish_best(2, of_step(2)) == tmp_path / "dog-best.safetensors"
    assert names(tmp_path) == ["dog-best.safetensors"]


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


def test_a_work_folder_that_cannot_be_deleted_keeps_its_lock_and_is_deleted_later(tmp_path, caplog):
    """Without its lock it would look like another program's, and stay forever."""

    def compute():
        (next(tmp_path.glob(".*.part")) / "obstacle").mkdir()
        return torch.zeros(3)

    path = write_new(tmp_path, "dog", {"a": TensorToWrite((3,), torch.float32, compute)}, {})
    assert path == tmp_path / "dog.safetensors"
    (left,) = tmp_path.glob(".*.part")
    assert (left / "lock").is_file()
    (message,) = caplog.messages
    assert message.startswith(f"The unfinished files in '{left}' could not be deleted (")
    assert message.endswith("). The next run into its folder deletes them.")
    (left / "obstacle").rmdir()
    prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dog.safetensors"]


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


def test_a_disk_that_cannot_sync_is_named(tmp_path, monkeypatch):
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError) as caught:
        write_new(tmp_path, "dog", TENSORS, {})
    path = tmp_path / "dog.safetensors"
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(path))
    assert list(tmp_path.iterdir()) == []


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
