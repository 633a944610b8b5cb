"""The commands that make files from files, without training: `python -m trainer extract-lora |
apply-lora`."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tyro.conf import Fixed, SuppressFixed

from .. import toy
from ..conversion import likeness, merging
from ..conversion.extraction import Extraction, extract_once
from ..conversion.low_rank import RankRule
from ..conversion.pairs import Model
from ..evaluation import encoders
from ..evaluation.comparison import Candidate
from ..hardware import find_device
from ..settings.config import FileDtype, ModelOptions, OutputConfig, Precision, SamplingConfig
from .commands import Shared
from .evaluation_commands import read_images
from .terminal import TerminalObserver

DEFAULT = OutputConfig()


@dataclass(frozen=True, kw_only=True)
class _Output(OutputConfig):
    folder: Path = DEFAULT.folder
    """Folder of the file. Created if it is missing."""
    embedding_folder: SuppressFixed[Fixed[Path | None]] = None
    save_every: SuppressFixed[Fixed[int]] = DEFAULT.save_every
    keep: SuppressFixed[Fixed[int]] = DEFAULT.keep
    state_every: SuppressFixed[Fixed[int]] = DEFAULT.state_every
    keep_state: SuppressFixed[Fixed[bool]] = DEFAULT.keep_state
    private: SuppressFixed[Fixed[bool]] = DEFAULT.private


@dataclass(frozen=True, kw_only=True)
class _LoraOutput(_Output):
    """Where the LoRA is saved, and in what form. Existing files are not overwritten."""

    dtype: FileDtype = "fp16"
    """Number format of the LoRA. fp16 is half as large as fp32 and loses less than a thousandth of
    a thousandth of the change. "as input" is that of the trained checkpoint."""


@dataclass(frozen=True, kw_only=True)
class _CheckpointOutput(_Output):
    """Where the checkpoint is saved, and in what form. Existing files are not overwritten."""

    dtype: FileDtype = DEFAULT.dtype
    """Number format of the weights that a LoRA changes. "as input" is that of the checkpoint; all
    other weights keep theirs."""


@dataclass(frozen=True, kw_only=True)
class ExtractLora(Shared):
    """Extract a LoRA from a trained checkpoint: a small file that changes the base model into it.
    Its layers have the ranks that they need. With CLIP or DINO, images of both are compared."""

    base: Path
    """The checkpoint that the training started from, or "toy"."""
    trained: Path
    """The trained checkpoint."""
    rule: Annotated[RankRule, tyro.conf.arg(name="")] = field(default_factory=RankRule)
    output: _LoraOutput = field(default_factory=_LoraOutput)
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    embedding: Path | None = None
    """An embedding file from textual inversion, if prompts contain its placeholder."""
    prompts: tuple[str, ...] = ()
    """The prompts of the images to compare. Needs --judge."""
    judge: Path | None = None
    """A CLIP or DINO model (folder or file), or "toy", to compare images of the trained checkpoint
    with those of the base model and the LoRA. Not set: no images."""
    photos: Path | None = None
    """A folder of photos of the subject, to score the images against too."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(
        default_factory=SamplingConfig
    )
    precision: Precision = "fp32"
    """Number format in which the images are drawn."""

    def run(self) -> None:
        self._check()
        with TerminalObserver() as observer:
            found = extract_once(
                self._base, self._trained, self.rule, _dated(self.output),
                device=find_device(self.device), observer=observer,
            )  # fmt: skip
        _log(found)
        logging.info("%s", found.describe())
        if self.judge:
            logging.info("%s", self._compare(found, self.judge).describe())

    @property
    def _base(self) -> Model:
        return Model(toy.resolve(self.base), self.options)

    @property
    def _trained(self) -> Model:
        return Model(toy.resolve(self.trained), replace(self.options, loras=(), lora_strengths=()))

    def _check(self) -> None:
        if (self.judge is None) != (not self.prompts) or (self.photos and self.judge is None):
            raise ValueError(
                "Images are drawn from --prompts and compared by --judge, also with --photos. Give "
                "both --prompts and --judge, or none of the three."
            )

    def _compare(self, found: Extraction, judge: Path) -> likeness.Likeness:
        device = find_device(self.device)
        models = {
            likeness.BASE: self._base,
            likeness.TRAINED: self._trained,
            likeness.EXTRACTED: replace(self._base, options=found.options(self.options)),
        }
        candidates = {
            name: Candidate(
                label=name, path=model.path, embedding=self.embedding, options=model.options
            )
            for name, model in models.items()
        }
        photos: list[np.ndarray] = read_images([self.photos]) if self.photos else []
        with TerminalObserver() as observer:
            return likeness.measure(
                candidates, self.prompts, self.sampling,
                encoders.load(toy.resolve_judge(judge), device), device=device, photos=photos,
                number_format=self.precision, observer=observer,
            )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ApplyLora(Shared):
    """Write a checkpoint with LoRAs applied, so that every program can use it and it can be trained
    on. All weights that no LoRA changes are copied bit for bit."""

    base: Path
    """The checkpoint that the LoRAs change, or "toy"."""
    output: _CheckpointOutput = field(default_factory=_CheckpointOutput)
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)
    device: SuppressFixed[Fixed[str]] = "cpu"

    def run(self) -> None:
        if not self.options.loras and not self.options.vae:
            raise ValueError("There is nothing to apply. Name LoRA files with --loras.")
        model = Model(toy.resolve(self.base), self.options)
        with TerminalObserver() as observer:
            _log(merging.merge_once(model, _dated(self.output), observer))


def _dated(output: OutputConfig) -> OutputConfig:
    return output.dated(datetime.now())


def _log(written: Any) -> None:
    logging.info("%s %s", "Found" if written.reused else "Wrote", written.path)
