"""What `python -m trainer` can do: a class for each command, whose fields are its flags. Those that
look at pictures are in `evaluation_commands.py`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image

from .. import families, precision, toy
from ..evaluation import encoders
from ..evaluation.plots import loss_curve
from ..loop import train
from ..methods.base import Method
from ..methods.full import FullFineTune
from ..methods.textual_inversion import TextualInversion
from ..runs import run_list
from ..runs.disk_space import format_bytes
from ..runs.run import OnExisting
from ..sampling.class_images import make_class_images
from ..sampling.sampler import sample
from ..settings.config import Precision, PriorConfig, SamplingConfig, TrainingConfig
from ..storage import json_files
from .terminal import TerminalObserver


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every command takes."""

    device: str = ""
    """cuda, cuda:1, mps or cpu; empty takes the best there is."""
    settings: Path | None = None
    """A TOML file of options: `steps = 400`, or under a heading `[optimizer]`. Flags beat it."""


@dataclass(frozen=True, kw_only=True)
class _Training(Shared):
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]
    method: Method
    preset: str = ""
    """Start from the values that suit an object, a face, or the toy model. The settings file and
    flags beat it."""
    runs: Path | None = None
    """Where runs are kept, so that the same command goes on with one that was stopped, and does not
    repeat one that was finished; none takes "runs" in output.folder."""
    judge: Path | None = None
    """What scores the previews and so finds the best step: CLIP or DINO, as a folder or a file, or
    "toy"; none scores nothing."""
    on_existing: OnExisting = "reuse"
    """What to do with a run that is there: take its result or go on (reuse); the same, but never
    begin one that is not there (resume); begin it anew (retrain)."""

    def run(self) -> None:
        method, settings = dataclasses.asdict(self.method), dataclasses.asdict(self.config)
        for name, value in flat({"method": method, **settings}):
            logging.info("%s = %s", name, value)
        config = dataclasses.replace(self.config, base=toy.resolve(self.config.base))
        device = find_device(self.device)
        judge = toy.resolve_judge(self.judge) if self.judge else None
        previews = config.output.folder / "previews"
        with TerminalObserver(previews) as observer:
            result = train(
                config,
                self.method,
                device=device,
                observer=observer,
                runs=self.runs or config.output.folder / "runs",
                on_existing=self.on_existing,
                load_encoder=partial(encoders.load, judge, device) if judge else None,
            )
        for part, (distance, share) in result.moved.items():
            logging.info("%s moved by %.2e of its length; %.1f %% of its weights changed in the "
                         "file", part, distance, 100 * share)  # fmt: skip
        for path in [*result.files.values(), *result.best.values()]:
            logging.info("%s %s", "Found" if result.reused else "Wrote", path)
        if result.best_step:
            logging.info("The best step is %d of %d.", result.best_step, result.steps)
        if result.scores:
            with json_files.warn_on_failure("the curve of the scores"):
                curve = previews / "curve.png"
                loss_curve(result.reports, result.scores).save(curve)
                logging.info("What was learned and lost is in %s", curve)


@dataclass(frozen=True, kw_only=True)
class Train(_Training):
    """Train a checkpoint on photos of a subject, and write a new one that draws it."""

    method: FullFineTune = field(default_factory=FullFineTune)


@dataclass(frozen=True, kw_only=True)
class InvertText(_Training):
    """Learn a new word for the subject of the photos, and write it as an embedding; the model
    itself stays as it is."""

    method: TextualInversion


@dataclass(frozen=True, kw_only=True)
class Priors(Shared):
    """Make class images with a base model, or those that are missing of an earlier request."""

    base: Path
    """The checkpoint that makes them, or "toy"."""
    prior: Annotated[PriorConfig, tyro.conf.arg(name="")]
    folder: Path = Path("out/class_images")
    """Each request gets a subfolder of its own here."""
    resolution: int | None = None
    """Width and height, in pixels; none takes the model's own."""
    precision: Precision = "fp32"
    """Number format of the computation."""

    def run(self) -> None:
        device = find_device(self.device)
        precision.check(self.precision, device)
        model = families.load(toy.resolve(self.base), device)
        resolution = self.resolution or model.native_resolution
        with TerminalObserver() as observer, precision.autocast(self.precision, device):
            made = make_class_images(
                model, self.prior, self.folder, resolution=resolution, observer=observer
            )
        logging.info("%d class images in %s", len(made), made[0].parent)


@dataclass(frozen=True, kw_only=True)
class Sample(Shared):
    """Draw pictures from prompts."""

    checkpoint: Path
    """The checkpoint that draws, or "toy"."""
    prompts: tuple[str, ...]
    """One picture per prompt and scheduler."""
    embedding: Path | None = None
    """The file of a textual inversion, whose placeholder then stands for its vectors in prompts."""
    schedulers: tuple[str, ...] = ()
    """Several in place of the one of --scheduler, each from the same noise."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(
        default_factory=SamplingConfig
    )
    size: tuple[int, int] | None = None
    """Width and height, in pixels; none takes the model's own."""
    folder: Path = Path("out/samples")
    """Where the pictures go, under new names."""
    precision: Precision = "fp32"
    """Number format of the computation."""

    def run(self) -> None:
        device = find_device(self.device)
        precision.check(self.precision, device)
        model = families.load(toy.resolve(self.checkpoint), device, self.embedding)
        self.folder.mkdir(parents=True, exist_ok=True)
        for scheduler in self.schedulers or (self.sampling.scheduler,):
            sampling = dataclasses.replace(self.sampling, scheduler=scheduler)
            with TerminalObserver() as observer, precision.autocast(self.precision, device):
                images = sample(model, self.prompts, sampling, size=self.size, observer=observer)
            for index, image in enumerate(images):
                name = f"{scheduler} {index:03d}.png".replace(" ", "_")
                (path,) = new_names(self.folder, name)
                Image.fromarray(image).save(path)
                logging.info("Wrote %s", path)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List the runs that were begun: how far each came, what it wrote, and how much room it takes;
    or delete some of them. Checkpoints and embeddings are never deleted."""

    folder: tyro.conf.Positional[Path] = Path("out/runs")
    """Where runs are kept: "runs" in --output.folder, unless --runs named another."""
    delete: tuple[str, ...] = ()
    """IDs of runs to delete. The same command then trains them anew."""
    delete_states: tuple[str, ...] = ()
    """IDs of runs whose states to delete, or "all". One that was stopped then begins at step 1, and
    one that is finished cannot be trained on."""

    def run(self) -> None:
        if self.delete:
            freed = run_list.delete(self.folder, self.delete)
            logging.info("Deleted %d runs, which freed %s.", len(self.delete), format_bytes(freed))
        if self.delete_states:
            freed = run_list.delete_states(self.folder, self.delete_states)
            logging.info("Deleted states, which freed %s.", format_bytes(freed))
        if self.delete or self.delete_states:
            return
        found = run_list.entries(self.folder)
        if not found:
            logging.info("There are no runs in '%s'.", self.folder)
            return
        size, of_states = (
            format_bytes(sum(getattr(entry, what) for entry in found))
            for what in ("size", "size_of_states")
        )
        logging.info("%s", run_list.table(found))
        logging.info("All together %s, of which states %s.", size, of_states)


@dataclass(frozen=True, kw_only=True)
class Demo(Shared):
    """Teach the toy model a new cup, and show before and after."""

    folder: Path = Path("out/demo")
    """Where the checkpoint, pictures and report go."""

    def run(self) -> None:
        from ..toy.demo import demo_config, run_demo

        config = demo_config(self.folder)
        with TerminalObserver() as observer:
            report = run_demo(config, find_device(self.device), observer)
        logging.info("%s", report)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def find_device(name: str) -> torch.device:
    """The device of that name, or the best there is."""
    if name:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def new_names(folder: Path, *names: str) -> list[Path]:
    """Of files that belong together: these names, or all with the same number that is free."""
    for number in itertools.count():
        parts = [Path(name) for name in names]
        end = f"_{number}" if number else ""
        paths = [folder / f"{part.stem}{end}{part.suffix}" for part in parts]
        if not any(path.exists() for path in paths):
            return paths
    raise AssertionError
