"""Writing checkpoints: the original file with its trained tensors replaced. A file appears under
its name only when it is complete. `families/files.py` reads checkpoints."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import weights
from .precision import DTYPES, is_coarse
from .settings.config import OutputConfig
from .storage.flush import flush_folder
from .storage.locks import LOCK, locked
from .storage.tensor_file import TensorToWrite, write
from .weights import FileTensor

Trained = Mapping[str, FileTensor]
"""Trained tensors by their names in the file."""


class Original(Protocol):
    """The tensors of a file before training. `CheckpointFile` implements it."""

    @property
    def dtypes(self) -> Mapping[str, torch.dtype]:
        """The dtype of every tensor that the written file will contain, by name."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Their shapes, by name."""
        ...

    @property
    def exact(self) -> Collection[str]:
        """The names of tensors that are written in these dtypes whatever `output.dtype` says."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]: ...

    def tensor(self, key: str) -> Tensor:
        """Return a tensor on the CPU. Do not change it in place."""
        ...


_STEP = r"\d{6,}(_\d{5})?\.safetensors"
"""How the names of intermediate files end."""


class CheckpointWriter:
    """Writes the checkpoints or embeddings of one run to one folder. Never overwrites a file, and
    deletes an old intermediate file only after the new one is on the disk."""

    def __init__(
        self, original: Original, output: OutputConfig, intermediate: Sequence[Path] = ()
    ) -> None:
        """`intermediate`: files written before the run was resumed, oldest first."""
        self.original = original
        self.output = output
        # Others may have written the list of files, which are deleted as newer ones are written.
        own = [path for path in intermediate if _is_in(path, output.folder) and path.exists()]
        self._intermediate, self._best = (
            [path for path in own if re.fullmatch(f"{re.escape(stem)}{_STEP}", path.name)]
            for stem in (f"{output.name}-step", f"{output.name}-best-step")
        )

    def save_step(self, step: int, trained: Trained, metadata: dict[str, str]) -> Path:
        """Write an intermediate file and delete all but the newest `output.keep`."""
        path = self._write(f"{self.output.name}-step{step:06d}", trained, metadata)
        self._intermediate.append(path)
        while len(self._intermediate) > self.output.keep:
            self._intermediate.pop(0).unlink(missing_ok=True)
        return path

    def save_best(self, step: int, trained: Trained, metadata: dict[str, str]) -> Path:
        """Write the file of the best step so far, then delete the previous one."""
        stem = f"{self.output.name}-best-step{step:06d}"
        self._best.append(self._write(stem, trained, metadata))
        while len(self._best) > 1:
            self._best.pop(0).unlink(missing_ok=True)
        return self._best[0]

    def publish_best(self, step: int | None) -> Path | None:
        """Rename the best step's file to its final name and return the path. Deletes any file of
        another step. Returns None if there is no file of this step."""
        kept = None
        for path in self._best:
            if step is not None and f"-step{step:06d}" in path.name and path.exists():
                kept = _publish(path, self.output.folder, f"{self.output.name}-best")
            path.unlink(missing_ok=True)
        self._best = []
        return kept

    @property
    def intermediate(self) -> dict[int, Path]:
        """The intermediate files that still exist, by step; the newer of two of the same step."""
        prefix = len(f"{self.output.name}-step")
        existing = [path for path in self._intermediate if path.exists()]
        return {int(re.findall(r"\d+", path.name[prefix:])[0]): path for path in existing}

    def save_final(self, trained: Trained, metadata: dict[str, str]) -> Path:
        """Write the run's final checkpoint."""
        return self._write(self.output.name, trained, metadata)

    def to_file_dtype(self, name: str, tensor: FileTensor) -> Tensor:
        """Return a trained weight in the dtype of the file, on the CPU."""
        return weights.value(tensor).to("cpu", self._file_dtype(name))

    def _write(self, stem: str, trained: Trained, metadata: dict[str, str]) -> Path:
        unknown = sorted(set(trained) - set(self.original.dtypes))
        assert not unknown, f"not in the original: {unknown[:3]}"
        tensors = {name: self._to_write(name, trained) for name in self.original.dtypes}
        folder = self.output.folder
        folder.mkdir(parents=True, exist_ok=True)
        return write_new(folder, stem, tensors, metadata)

    def _to_write(self, name: str, trained: Trained) -> TensorToWrite:
        shape = self.original.shapes[name]
        if name in trained:
            return TensorToWrite(
                shape, self._file_dtype(name), lambda: self.to_file_dtype(name, trained[name])
            )
        dtype = self.original.dtypes[name]
        return TensorToWrite(shape, dtype, lambda: self.original.tensor(name).to(dtype))

    def _file_dtype(self, name: str) -> torch.dtype:
        choice = "as input" if name in self.original.exact else self.output.dtype
        return file_dtype(self.original.dtypes[name], choice)


def write_new(
    folder: Path, stem: str, tensors: Mapping[str, TensorToWrite], metadata: Mapping[str, str]
) -> Path:
    """Write a new .safetensors file named `stem`, or `stem_00001` and so on if that exists, and
    return its path. The file gets its name only when it is complete and on the disk. On an error
    nothing is left behind."""
    with _work_folder(folder, stem) as work:
        part = work / "whole.safetensors"
        _save(tensors, part, metadata)
        _flush(part)
        return _publish(part, folder, stem)


def require_inside(output: OutputConfig) -> None:
    """Raises ValueError if a link leads the subfolders of the name out of the output folder."""
    for root in {output.folder, output.embedding_folder or output.folder}:
        folder = dataclasses.replace(output, folder=root).in_subfolder().folder
        if not Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(root)):
            raise ValueError(
                f"output.name is {output.name!r}, but '{folder}' is a link that leads out of "
                f"'{root}'. Remove the link, or choose another name."
            )


def prepare_folder(folder: Path) -> None:
    """Create the output folder if needed, and delete unfinished files of killed processes. Raises
    OSError if the folder is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _work_folder(folder, "trial"):
            pass
    except OSError as error:
        raise OSError(
            f"Cannot write to the folder '{folder}': {error}. Make it writable, or choose another "
            "folder."
        ) from error


def _save(tensors: Mapping[str, TensorToWrite], path: Path, metadata: Mapping[str, str]) -> None:
    try:
        write(path, tensors, {"format": "pt", **metadata})
    except OSError as error:
        raise OSError(
            f"Could not write the checkpoint to '{path.parent.parent}': {error}"
        ) from error


@contextmanager
def _work_folder(folder: Path, stem: str) -> Iterator[Path]:
    """Create a hidden, locked subfolder for unfinished files, and delete it at the end."""
    _delete_abandoned(folder)
    work = folder / f".{stem}.{os.getpid()}.part"
    work.mkdir()
    try:
        with locked(work):
            yield work
    finally:
        shutil.rmtree(work)


def _delete_abandoned(folder: Path) -> None:
    """Delete the work folders of processes that were killed."""
    for work in folder.glob(".*.part"):
        if not (work / LOCK).is_file():
            continue  # another program's
        with suppress(RuntimeError):  # still in use
            with locked(work):
                pass
            shutil.rmtree(work)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _publish(part: Path, folder: Path, stem: str) -> Path:
    """Move a complete file to the first free name and return the path. Uses a hard link, which
    fails if another process has just taken the name; on POSIX a rename would overwrite its file."""
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
        except OSError:  # the file system has no hard links
            os.rename(part, path)
        flush_folder(folder)
        return path


def _is_in(path: Path, folder: Path) -> bool:
    return os.path.realpath(path.parent) == os.path.realpath(folder)


def file_dtype(original: torch.dtype, choice: str) -> torch.dtype:
    """The dtype of a trained weight in the file, for its dtype in the original file and the setting
    `output.dtype`. 8-bit numbers are too coarse for the changes of training."""
    if choice != "as input":
        return DTYPES[choice]
    return torch.float16 if is_coarse(original) else original


@dataclass(frozen=True, slots=True)
class WeightChange:
    """How much training changed some weights. Lengths are norms, divided by the norm of the old
    weights."""

    length: float
    """Of the change in the file."""
    share: float
    """The share of weights that changed in the file."""
    length_in_training: float
    """Of the change before rounding to the file's dtype."""
    similarity: float
    """The cosine between both changes: 1 if the file holds exactly what was trained, less if its
    dtype is too coarse; 0 if one of them is 0."""


@torch.no_grad()
def weight_change(writer: CheckpointWriter, trained: Trained) -> WeightChange:
    """Compare trained weights with the original ones, as they are and in the dtype of the file."""
    in_file = in_training = product = length = 0.0
    num_changed = num_weights = 0
    for name, tensor in trained.items():
        old = writer.original.tensor(name).double()
        stored = writer.to_file_dtype(name, tensor).double() - old
        exact = weights.value(tensor).to("cpu", torch.float64) - old
        in_file += stored.square().sum().item()
        in_training += exact.square().sum().item()
        product += (stored * exact).sum().item()
        length += old.square().sum().item()
        num_changed += int(stored.count_nonzero().item())
        num_weights += stored.numel()
    length = max(length, 1e-30)
    return WeightChange(
        length=(in_file / length) ** 0.5,
        share=num_changed / max(num_weights, 1),
        length_in_training=(in_training / length) ** 0.5,
        similarity=product / max((in_file * in_training) ** 0.5, 1e-300),
    )
