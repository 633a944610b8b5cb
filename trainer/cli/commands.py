"""The commands of `python -m trainer`: a dataclass each, whose fields are its flags. Those that
compare and score images are in `evaluation_commands.py`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image

from .. import families, precision, processes, toy
from ..evaluation import encoders
from ..evaluation.plots import loss_curve
from ..families.embedding import require_in_use
from ..families.networks import NumberFormats
from ..follower import Follower
from ..hardware import find_device
from ..loop import TrainingResult, train
from ..methods.base import Method
from ..methods.full import FullFineTune
from ..methods.lora import LoRA
from ..methods.textual_inversion import TextualInversion
from ..processes import Processes
from ..runs import run_list
from ..runs.disk_space import format_bytes
from ..runs.run import OnExisting
from ..sampling.class_images import make_class_images
from ..sampling.sampler import sample
from ..settings.config import ModelOptions, Precision, PriorConfig, SamplingConfig, TrainingConfig
from ..settings.values import flatten
from ..storage import json_files
from ..storage.png_files import save_png
from .terminal import TerminalObserver, stopping_when_told


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of almost every command."""

    device: str = ""
    """cuda, cuda:1, mps or cpu. If empty, the best one available."""
    settings: Path | None = None
    """A TOML file of options, such as `steps = 400`, or `learning_rate = 1e-6` under `[optimizer]`.
    Flags override it."""


@dataclass(frozen=True, kw_only=True)
class _Training(Shared):
    config: Annotated[TrainingConfig, tyro.conf.arg(name="")]
    method: Method
    preset: str = ""
    """Start from settings for an object, a face or the toy model; the list is in python -m trainer
    --help. The settings file and flags override it."""
    runs: Path | None = None
    """Folder where runs are kept, so that the same command resumes a stopped run and does not
    repeat a finished one. None: "runs" in output.folder."""
    judge: Path | None = None
    """A CLIP or DINO model (folder or file), or "toy", to score the previews and find the best
    step. None: no scores."""
    on_existing: OnExisting = "reuse"
    """If the same run exists: return its result, or resume it if it is unfinished (reuse); also
    resume a run that was finished early, and never start a new one (resume); start over (retrain).
    """
    vram: str = "auto"
    """Memory of the graphics card that the run may use. auto: what is free, on an NVIDIA card; 6,
    8, 12 and so on: that of a card with so many GB. Precision, weights, optimizer, checkpointing
    and batch size are then chosen so that the run fits; settings that you set stay. off: nothing
    is chosen."""
    given: tyro.conf.Fixed[frozenset[str]] = frozenset()
    """Dotted names of the settings that flags and the settings file set."""

    def run(self) -> None:
        if not processes.are_requested():
            self._train(find_device(self.device), processes.ALONE)
            return
        device = find_device(self.device or processes.own_device())
        joined = processes.JoinedProcesses(device)
        if not joined.is_leader:
            processes.end(processes.follow(joined, Follower(joined, device)))
        with processes.leading(joined), stopping_when_told():
            self._train(device, joined)

    def _train(self, device: torch.device, joined: Processes) -> None:
        self._log_settings()
        config = dataclasses.replace(self.config, base=toy.resolve(self.config.base))
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
                vram=self.vram,
                given=self.given,
                processes=joined,
            )
        _log_result(result)
        if result.scores:
            with json_files.warn_on_failure("the chart of the scores"):
                chart = previews / "curve.png"
                save_png(chart, loss_curve(result.reports, result.scores))
                logging.info("Wrote the chart of losses and scores: %s", chart)

    def _log_settings(self) -> None:
        method, settings = dataclasses.asdict(self.method), dataclasses.asdict(self.config)
        for name, value in flatten({"method": method, **settings}):
            logging.info("%s = %s", name, value)


def require_training(command: object) -> None:
    """Raises ValueError for a command whose work several processes cannot share."""
    if processes.are_requested() and not isinstance(command, _Training):
        raise ValueError(
            "Only train, lora and textual-inversion can use several processes. Start this command "
            "without torchrun."
        )


def _log_result(result: TrainingResult) -> None:
    for part, (distance, share) in result.moved.items():
        logging.info("%s: relative change of the weights %.2e (L2 norm), %.1f %% of them differ in "
                     "the file", part, distance, 100 * share)  # fmt: skip
    for path in [*result.files.values(), *result.best.values()]:
        logging.info("%s %s", "Found" if result.reused else "Wrote", path)
    if result.best_step:
        logging.info("The best step is %d of %d.", result.best_step, result.steps)


@dataclass(frozen=True, kw_only=True)
class Train(_Training):
    """Train a checkpoint on photos of a subject (DreamBooth), and save it as a new checkpoint."""

    method: FullFineTune = field(default_factory=FullFineTune)


@dataclass(frozen=True, kw_only=True)
class TrainLora(_Training):
    """Train a LoRA on photos of a subject (DreamBooth): a small file that changes the model."""

    method: LoRA = field(default_factory=LoRA)


@dataclass(frozen=True, kw_only=True)
class InvertText(_Training):
    """Train an embedding on photos of a subject (textual inversion). The model itself is not
    changed."""

    method: TextualInversion


@dataclass(frozen=True, kw_only=True)
class Priors(Shared):
    """Generate class images with a base model. Only those missing from an earlier call are
    generated."""

    base: Path
    """The checkpoint that generates the images, or "toy"."""
    prior: Annotated[PriorConfig, tyro.conf.arg(name="")]
    folder: Path = Path("out/class_images")
    """Output folder. Every combination of settings gets its own subfolder."""
    resolution: int | None = None
    """Width and height in pixels. None: the model's native resolution."""
    precision: Precision = "fp32"
    """Number format of the computation."""
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)

    def run(self) -> None:
        device = find_device(self.device)
        precision.check(self.precision, device)
        formats = NumberFormats(precision=self.precision)
        model = families.load(toy.resolve(self.base), device, options=self.options, formats=formats)
        resolution = self.resolution or model.native_resolution
        with TerminalObserver() as observer, precision.autocast(self.precision, device):
            made = make_class_images(
                model, self.prior, self.folder, resolution=resolution, observer=observer
            )
        logging.info("%d class images in %s", len(made), made[0].parent)


@dataclass(frozen=True, kw_only=True)
class Sample(Shared):
    """Generate images from prompts."""

    checkpoint: Path
    """The checkpoint that generates the images, or "toy"."""
    prompts: tuple[str, ...]
    """Generates one image per prompt and scheduler."""
    embedding: Path | None = None
    """An embedding file from textual inversion. Use its placeholder in the prompts."""
    schedulers: tuple[str, ...] = ()
    """Several noise schedulers in place of --scheduler, each from the same noise."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = field(
        default_factory=SamplingConfig
    )
    size: tuple[int, int] | None = None
    """Width and height in pixels. None: the model's native resolution."""
    folder: Path = Path("out/samples")
    """Output folder. Existing files are not overwritten."""
    precision: Precision = "fp32"
    """Number format of the computation."""
    options: Annotated[ModelOptions, tyro.conf.arg(name="")] = field(default_factory=ModelOptions)

    def run(self) -> None:
        device = find_device(self.device)
        precision.check(self.precision, device)
        if self.embedding:
            require_in_use(self.embedding, [*self.prompts, *self.sampling.negative_prompts])
        formats = NumberFormats(precision=self.precision)
        model = families.load(
            toy.resolve(self.checkpoint), device, self.embedding, self.options, formats
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        with model.on_device(model.unet), model.on_device(model.vae):
            for scheduler in self.schedulers or (self.sampling.scheduler,):
                sampling = dataclasses.replace(self.sampling, scheduler=scheduler)
                with TerminalObserver() as observer, precision.autocast(self.precision, device):
                    images = sample(
                        model, self.prompts, sampling, size=self.size, observer=observer
                    )
                for index, image in enumerate(images):
                    name = f"{scheduler} {index:03d}.png".replace(" ", "_")
                    (path,) = new_names(self.folder, name)
                    save_png(path, Image.fromarray(image))
                    logging.info("Wrote %s", path)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """List training runs with their status, files and size, or delete some. Checkpoints and
    embeddings are never deleted."""

    folder: tyro.conf.Positional[Path] = Path("out/runs")
    """The folder where runs are kept: "runs" in --output.folder, unless --runs was used."""
    delete: tuple[str, ...] = ()
    """IDs of runs to delete. The command that trained such a run then trains it again."""
    delete_states: tuple[str, ...] = ()
    """IDs of runs whose saved states to delete, or "all". A stopped run then starts over at step 1,
    and a finished one can no longer be continued with more steps."""

    def run(self) -> None:
        if self.delete:
            freed = run_list.delete(self.folder, self.delete)
            logging.info("Deleted %d runs and freed %s.", len(self.delete), format_bytes(freed))
        if self.delete_states:
            freed = run_list.delete_states(self.folder, self.delete_states)
            logging.info("Deleted states and freed %s.", format_bytes(freed))
        if self.delete or self.delete_states:
            return
        found = run_list.entries(self.folder)
        if not found:
            logging.info("There are no runs in '%s'.", self.folder)
            return
        size, states_size = (
            format_bytes(sum(getattr(entry, what) for entry in found))
            for what in ("size", "size_of_states")
        )
        logging.info("%s", run_list.table(found))
        logging.info("Total size: %s, of which states: %s.", size, states_size)


@dataclass(frozen=True, kw_only=True)
class Demo(Shared):
    """Train the built-in toy model on a new cup, and show images from before and after."""

    folder: Path = Path("out/demo")
    """Output folder for the checkpoint, images and report."""

    def run(self) -> None:
        from ..toy.demo import demo_config, run_demo

        config = demo_config(self.folder)
        with TerminalObserver() as observer:
            report = run_demo(config, find_device(self.device), observer)
        logging.info("%s", report)


def new_names(folder: Path, *names: str) -> list[Path]:
    """Paths in a folder for files that belong together, none of which exists yet: with these names,
    or all with the same number appended."""
    for number in itertools.count():
        parts = [Path(name) for name in names]
        end = f"_{number}" if number else ""
        paths = [folder / f"{part.stem}{end}{part.suffix}" for part in parts]
        if not any(path.exists() for path in paths):
            return paths
    raise AssertionError
