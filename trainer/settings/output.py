"""Settings of the files that a run writes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal, get_args

from ..storage import names
from .checks import at_least, is_text, one_of, require
from .effects import Decides, NoEffect

Precision = Literal["fp32", "fp16", "bf16"]
FileDtype = Literal["as input", Precision]


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Where trained files are saved, and in what form."""

    folder: NoEffect[Path] = Path("out")
    """Folder of the trained files. Created if it is missing."""
    embedding_folder: NoEffect[Path | None] = None
    """Folder of a trained embedding. Not set: the folder of the other trained files."""
    name: NoEffect[str] = "dreambooth"
    """File name without extension. It may begin with subfolders, as in "dogs/my-dog", and contain
    the date, as in "my-dog %date:yyyy-MM-dd%" or "my-dog %year%". If the name is taken, a number is
    added instead of overwriting the file."""
    save_every: NoEffect[int] = 0
    """Steps between intermediate saves, such as a quarter of all steps, to compare stages later. 0:
    save only at the end."""
    keep: NoEffect[int] = 3
    """How many intermediate saves to keep: the newest ones, each as large as the final result. To
    compare all stages, keep as many as there will be: deleted ones are not made again when a
    finished run is reused."""
    state_every: NoEffect[int] = 100
    """Steps between resume points, from which an interrupted run continues. 0: only when the run is
    stopped. Each takes as much time and space as several checkpoints."""
    keep_state: NoEffect[bool] = False
    """Keep the last resume point of a finished run, so that a run with more steps can continue from
    it. It takes about 12 bytes per trained weight (10 GB for Stable Diffusion 1.5) until you delete
    the run's folder."""
    dtype: Decides[FileDtype] = "as input"
    """Number format of the trained weights in the file. "as input" is that of the base model's
    file; fp32 keeps the smallest changes and nearly doubles the file of an fp16 model."""
    private: Decides[bool] = False
    """Leave prompts and the names of photos out of the file's metadata, which otherwise says what
    it was trained on. For files that you publish."""

    def __post_init__(self) -> None:
        at_least("output.save_every", self.save_every, 0)
        at_least("output.keep", self.keep, 1)
        at_least("output.state_every", self.state_every, 0)
        one_of("output.dtype", self.dtype, get_args(FileDtype))
        object.__setattr__(self, "name", names.without_ending(self.name))
        name = names.dated(self.name, datetime.now())
        fault = names.fault_of_path(name)
        require(not fault, f"output.name must be a plain file name, got {name!r}: {fault}.")
        size = max(len(part.encode()) for part in name.split("/"))
        require(size <= names.MAX_BYTES, f"output.name is {size} bytes long, but endings are "
                f"added to it, so at most {names.MAX_BYTES} are possible. Choose a shorter "
                "name.")  # fmt: skip
        is_text("output.folder", str(self.folder))
        is_text("output.embedding_folder", str(self.embedding_folder))

    def dated(self, moment: datetime) -> OutputConfig:
        """With the words for dates in the name replaced."""
        return dataclasses.replace(self, name=names.dated(self.name, moment))

    def in_subfolder(self) -> OutputConfig:
        """With the subfolders in the name moved to the end of the folder."""
        *subfolders, name = self.name.split("/")
        return dataclasses.replace(self, folder=self.folder.joinpath(*subfolders), name=name)
