"""The file out: the original with its trained tensors exchanged, complete or not there.
What a file is read with lives in `families/files.py`."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .precision import DTYPES
from .settings.config import OutputConfig
from .storage.flush import flush_folder
from .storage.locks import LOCK, locked


class Original(Protocol):
    """The tensors of a file as they were before training. `CheckpointFile` is one."""

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """By tensor name: all that the file out will hold."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def tensor(self, key: str) -> Tensor:
        """One of them, on the CPU. Not to be changed in place."""
        ...


class CheckpointWriter:
    """Writes the files of one kind of one run into one folder: each under a name of its own, never
    over an existing file, and the oldest intermediate one removed only after the newest is safe."""

    def __init__(
        self, original: Original, output: OutputConfig, intermediate: Sequence[Path] = ()
    ) -> None:
        """`intermediate`: what an earlier session of the run wrote, oldest first."""
        self.original = original
        self.output = output
        there = [path for path in intermediate if path.exists()]
        self._intermediate, self._best = (
            [path for path in there if path.name.startswith(stem)]
            for stem in (f"{output.name}-step", f"{output.name}-best-step")
        )

    def save_step(self, step: int, trained: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write an intermediate file; the newest `output.keep` of them stay."""
        path = self._write(f"{self.output.name}-step{step:06d}", trained, metadata)
        self._intermediate.append(path)
        while len(self._intermediate) > self.output.keep:
            self._intermediate.pop(0).unlink(missing_ok=True)
        return path

    def save_best(self, step: int, trained: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write the best file so far; the one before it goes once it is safe."""
        stem = f"{self.output.name}-best-step{step:06d}"
        self._best.append(self._write(stem, trained, metadata))
        while len(self._best) > 1:
            self._best.pop(0).unlink(missing_ok=True)
        return self._best[0]

    def publish_best(self, step: int | None) -> Path | None:
        """The best file, if it is of this step, under the name that it keeps, beside the result's.
        Any other goes."""
        kept = None
        for path in self._best:
            if step is not None and f"-step{step:06d}" in path.name and path.exists():
                kept = _publish(path, self.output.folder, f"{self.output.name}-best")
            path.unlink(missing_ok=True)
        self._best = []
        return kept

    @property
    def intermediate(self) -> dict[int, Path]:
        """By step, the intermediate files that are still there. Of two of one step, the newer."""
        behind = len(f"{self.output.name}-step")
        there = [path for path in self._intermediate if path.exists()]
        return {int(re.findall(r"\d+", path.name[behind:])[0]): path for path in there}

    def save_final(self, trained: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        """Write the result of the run."""
        return self._write(self.output.name, trained, metadata)

    def to_file_dtype(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as the file will hold it, on the CPU."""
        choice = self.output.dtype
        dtype = self.original.dtypes[name] if choice == "as input" else DTYPES[choice]
        return tensor.detach().to("cpu", dtype).contiguous()

    def _write(self, stem: str, trained: Mapping[str, Tensor], metadata: dict[str, str]) -> Path:
        unknown = sorted(set(trained) - set(self.original.dtypes))
        assert not unknown, f"not in the original: {unknown[:3]}"
        tensors = {
            name: self.to_file_dtype(name, trained[name])
            if name in trained
            else self.original.tensor(name).contiguous()
            for name in self.original.dtypes
        }
        folder = self.output.folder
        folder.mkdir(parents=True, exist_ok=True)
        return write_new(folder, stem, tensors, metadata)


def write_new(
    folder: Path, stem: str, tensors: dict[str, Tensor], metadata: dict[str, str]
) -> Path:
    """The path of a new .safetensors file, `stem` or `stem_00001` and so on. It appears under its
    name only once it is complete and on the disk; on any error nothing is left."""
    with _workplace(folder, stem) as place:
        part = place / "whole.safetensors"
        part.touch()
        mode = part.stat().st_mode
        _save(tensors, part, metadata)
        part.chmod(mode)  # safetensors makes files that only their owner can read
        _flush(part)
        return _publish(part, folder, stem)


def prepare_folder(folder: Path) -> None:
    """Make a folder to write in, and remove what killed processes left there half done. OSError if
    nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _workplace(folder, "trial"):
            pass
    except OSError as error:
        raise OSError(
            f"Nothing can be written into '{folder}': {error}. Make that possible, or choose "
            "another folder."
        ) from error


def _save(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata={"format": "pt", **metadata})
    except SafetensorError as error:
        raise OSError(
            f"No checkpoint could be written into '{path.parent.parent}': {error}"
        ) from error


@contextmanager
def _workplace(folder: Path, stem: str) -> Iterator[Path]:
    """A hidden folder in `folder` for what is half done: safetensors too begins with a file of
    another name. It goes in the end, and so do those of processes that were killed."""
    for place in folder.glob(".*.part"):
        if not (place / LOCK).is_file():
            continue  # it is not ours
        with suppress(RuntimeError):  # raised where somebody is at work
            with locked(place):
                pass
            shutil.rmtree(place)
    place = folder / f".{stem}.{os.getpid()}.part"
    place.mkdir()
    try:
        with locked(place):
            yield place
    finally:
        shutil.rmtree(place)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _publish(part: Path, folder: Path, stem: str) -> Path:
    """Give a complete file the first free name. A hard link fails where the name is taken, even if
    another process took it this instant; a rename on POSIX would overwrite."""
    counter = 0
    while True:
        path = folder / (f"{stem}_{counter:05d}.safetensors" if counter else f"{stem}.safetensors")
        counter += 1
        if path.exists():
            continue
        try:
            os.link(part, path)
        except FileExistsError:
            continue
        except OSError:  # a filesystem without hard links
            os.rename(part, path)
        flush_folder(folder)
        return path


@torch.no_grad()
def weight_change(writer: CheckpointWriter, trained: Mapping[str, Tensor]) -> tuple[float, float]:
    """How far training moved these tensors as the file will hold them: the length of the change
    over the length of the old weights, and the share of single weights that changed."""
    change = length = 0.0
    num_changed = num_weights = 0
    for name, tensor in trained.items():
        old = writer.original.tensor(name)
        new = writer.to_file_dtype(name, tensor)
        difference = new.double() - old.double()
        change += difference.square().sum().item()
        length += old.double().square().sum().item()
        num_changed += int(difference.count_nonzero().item())
        num_weights += difference.numel()
    return (change / max(length, 1e-30)) ** 0.5, num_changed / max(num_weights, 1)
