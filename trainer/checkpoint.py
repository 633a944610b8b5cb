"""Writing checkpoints: the original file with its trained tensors replaced. A file appears under
its name only when it is complete. `families/files.py` reads checkpoints."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from . import weights
from .families.files import CheckpointFile
from .precision import DTYPES, is_coarse
from .settings.config import OutputConfig
from .storage.disk_errors import naming
from .storage.flush import flush_folder, make_folder
from .storage.listing import matching
from .storage.locks import delete_abandoned_folder, own_folder
from .storage.tensor_file import TensorToWrite, write
from .weights import FileTensor

Trained = Mapping[str, FileTensor]
"""Trained tensors by their names in the file."""
OF_ONE_WRITE = ("ss_training_started_at", "ss_steps", "dreambooth.losses")
"""The metadata by which a run recognises its own file of a step: when the run was started, and the
losses up to the step."""


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
        self,
        original: Original,
        output: OutputConfig,
        intermediate: Sequence[Path] = (),
        *,
        is_resumed: bool = False,
    ) -> None:
        """`intermediate`: files written before the run was resumed, oldest first. `is_resumed`: a
        session that was killed may have written more, and those are not written again."""
        self.original = original
        self.output = output
        self._is_resumed = is_resumed
        # Others may have written the list of files, which are deleted as newer ones are written.
        own = [path for path in intermediate if _is_in(path, output.folder) and path.exists()]
        self._intermediate, self._best = (
            [path for path in own if re.fullmatch(f"{re.escape(stem)}{_STEP}", path.name)]
            for stem in (f"{output.name}-step", f"{output.name}-best-step")
        )

    def save_step(self, step: int, trained: Trained, metadata: dict[str, str]) -> Path:
        """Write an intermediate file and delete all but the newest `output.keep`."""
        path = self._write(f"{self.output.name}-step{step:06d}", trained, metadata)
        self._intermediate = [other for other in self._intermediate if other != path] + [path]
        while len(self._intermediate) > self.output.keep:
            self._intermediate.pop(0).unlink(missing_ok=True)
        return path

    def save_best(self, step: int, trained: Trained, metadata: dict[str, str]) -> Path:
        """Write the file of the best step so far, then delete the previous one."""
        stem = f"{self.output.name}-best-step{step:06d}"
        path = self._write(stem, trained, metadata)
        self._best = [other for other in self._best if other != path] + [path]
        while len(self._best) > 1:
            self._best.pop(0).unlink(missing_ok=True)
        return self._best[0]

    def publish_best(self, step: int | None, metadata: Mapping[str, str]) -> Path | None:
        """Rename the best step's file, which has the metadata of that step, to its final name and
        return the path. Deletes files of other steps. Returns None if there is none of this
        step."""
        stem = f"{self.output.name}-best"
        kept = self._written_before(stem, metadata) if step is not None else None
        for path in self._best:
            is_best = step is not None and f"-step{step:06d}" in path.name
            if is_best and not kept and path.exists():
                kept = _publish(path, self.output.folder, stem)
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
        if path := self._written_before(stem, metadata):
            return path
        unknown = sorted(set(trained) - set(self.original.dtypes))
        assert not unknown, f"not in the original: {unknown[:3]}"
        tensors = {name: self._to_write(name, trained) for name in self.original.dtypes}
        folder = self.output.folder
        make_folder(folder)
        return write_new(folder, stem, tensors, metadata)

    def _written_before(self, stem: str, metadata: Mapping[str, str]) -> Path | None:
        """The file of this name and of the same step that an earlier session of the run wrote
        before it was killed."""
        paths = _paths(self.output.folder, stem) if self._is_resumed else iter(())
        for path in takewhile(Path.exists, paths):
            with suppress(OSError, ValueError, KeyError):  # another program's
                found = CheckpointFile(path).metadata
                if all(found[key] == metadata[key] for key in OF_ONE_WRITE):
                    return path
        return None

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
        with naming(folder / f"{stem}.safetensors"):
            write(part, tensors, {"format": "pt", **metadata})
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
        make_folder(folder)
        with _work_folder(folder, "trial"):
            pass
    except OSError as error:
        raise OSError(
            f"Cannot write to the folder '{folder}': {error}. Make it writable, or choose another "
            "folder."
        ) from error


@contextmanager
def _work_folder(folder: Path, stem: str) -> Iterator[Path]:
    """Create a hidden, locked subfolder for unfinished files, and delete it at the end. Those of
    killed processes are deleted before."""
    delete_unfinished(folder)
    work = folder / f".{stem}.{os.getpid()}.part"
    with own_folder(work):
        yield work


def delete_unfinished(folder: Path) -> None:
    """Delete what killed processes were writing to an output folder. What cannot be deleted now
    stays until the next time."""
    with suppress(OSError):
        for abandoned in matching(folder, ".*.part"):
            delete_abandoned_folder(abandoned)


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _publish(part: Path, folder: Path, stem: str) -> Path:
    """Move a complete file to the first free name and return the path. Uses a hard link, which
    fails if another process has just taken the name; on POSIX a rename would overwrite its file."""
    for path in _paths(folder, stem):
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
    raise AssertionError("there is always another name")


def _paths(folder: Path, stem: str) -> Iterator[Path]:
    """The names that a file can get, in order, without end."""
    yield folder / f"{stem}.safetensors"
    for number in count(1):
        yield folder / f"{stem}_{number:05d}.safetensors"


def _is_in(path: Path, folder: Path) -> bool:
    return os.path.realpath(path.parent) == os.path.realpath(folder)


def file_dtype(original: torch.dtype, choice: str) -> torch.dtype:
    """The dtype of a trained weight in the file, for its dtype in the original file and the setting
    `output.dtype`. 8-bit numbers are too coarse for the changes of training."""
    if choice != "as input":
        return DTYPES[choice]
    return torch.float16 if is_coarse(original) else original
