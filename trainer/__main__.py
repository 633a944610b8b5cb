"""The command line: `python -m trainer train | textual-inversion | priors | sample | demo`.

Its flags, their defaults and their help are the dataclasses' of `config.py`."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image

from . import families, precision, toy
from .config import Precision, PriorConfig, SamplingConfig, TrainingConfig
from .loop import train
from .lr_schedules import LR_SCHEDULES
from .methods.base import Method
from .methods.full import FullFineTune
from .methods.textual_inversion import TextualInversion
from .optimizers import OPTIMIZERS
from .presets import INVERSION_PRESETS, PRESETS
from .priors import make_class_images
from .runs import OnExisting
from .sampling import sample
from .schedulers import SCHEDULERS
from .terminal import TerminalObserver, stopping_between_steps
from .toy.judge import load as load_judge

MENUS = (
    f"Presets: {', '.join(PRESETS)}; of textual inversion: {', '.join(INVERSION_PRESETS)}. "
    f"Optimizers: {', '.join(OPTIMIZERS)}. "
    f"Learning-rate schedules: {', '.join(LR_SCHEDULES)}. Schedulers: {', '.join(SCHEDULERS)}."
)


@dataclass(frozen=True, kw_only=True)
class _Shared:
    device: str = ""
    """cuda, cuda:1, mps or cpu; empty takes the best there is."""
    settings: Path | None = None
    """A TOML file of options: `steps = 400`, or under a heading `[optimizer]`. Flags beat it."""


@dataclass(frozen=True, kw_only=True)
class _Training(_Shared):
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
        for name, value in _flat({"method": method, **settings}):
            logging.info("%s = %s", name, value)
        config = dataclasses.replace(self.config, base=toy.resolve(self.config.base))
        device, judge = _device(self.device), self.judge
        with TerminalObserver(config.output.folder / "previews") as observer:
            result = train(
                config,
                self.method,
                device=device,
                observer=observer,
                runs=self.runs or config.output.folder / "runs",
                on_existing=self.on_existing,
                load_judge=partial(load_judge, judge, device) if judge else None,
            )
        for part, (distance, share) in result.moved.items():
            logging.info("%s moved by %.2e of its length; %.1f %% of its weights changed in the "
                         "file", part, distance, 100 * share)  # fmt: skip
        for path in [*result.files.values(), *result.best.values()]:
            logging.info("%s %s", "Found" if result.reused else "Wrote", path)
        if result.best_step:
            logging.info("The best step is %d of %d.", result.best_step, result.steps)


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
class Priors(_Shared):
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
        device = _device(self.device)
        precision.check(self.precision, device)
        model = families.load(toy.resolve(self.base), device)
        resolution = self.resolution or model.native_resolution
        with TerminalObserver() as observer, precision.autocast(self.precision, device):
            made = make_class_images(
                model, self.prior, self.folder, resolution=resolution, observer=observer
            )
        logging.info("%d class images in %s", len(made), made[0].parent)


@dataclass(frozen=True, kw_only=True)
class Sample(_Shared):
    """Draw pictures from prompts."""

    checkpoint: Path
    """The checkpoint that draws, or "toy"."""
    prompts: tuple[str, ...]
    """One picture per prompt and scheduler."""
    embedding: Path | None = None
    """The file of a textual inversion, whose placeholder then stands for its vectors in prompts."""
    schedulers: tuple[str, ...] = ("DDIM",)
    """Each starts from the same noise."""
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
        device = _device(self.device)
        precision.check(self.precision, device)
        model = families.load(toy.resolve(self.checkpoint), device, self.embedding)
        self.folder.mkdir(parents=True, exist_ok=True)
        for scheduler in self.schedulers:
            sampling = dataclasses.replace(self.sampling, scheduler=scheduler)
            with TerminalObserver() as observer, precision.autocast(self.precision, device):
                images = sample(model, self.prompts, sampling, size=self.size, observer=observer)
            for index, image in enumerate(images):
                path = _new_name(self.folder, f"{scheduler} {index:03d}".replace(" ", "_"))
                Image.fromarray(image).save(path)
                logging.info("Wrote %s", path)


@dataclass(frozen=True, kw_only=True)
class Demo(_Shared):
    """Teach the toy model a new cup, and show before and after."""

    folder: Path = Path("out/demo")
    """Where the checkpoint, pictures and report go."""

    def run(self) -> None:
        from .toy.demo import demo_config, run_demo

        config = demo_config(self.folder)
        with TerminalObserver() as observer:
            report = run_demo(config, _device(self.device), observer)
        logging.info("%s", report)


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "textual-inversion": InvertText,
    "priors": Priors,
    "sample": Sample,
    "demo": Demo,
}


def main(arguments: list[str]) -> int:
    """The exit code: 0 only if everything asked for was written."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        arguments = [*arguments[:1], *_preset_flags(arguments), *arguments[1:]]
        command: Any = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=arguments, prog="python -m trainer", description=MENUS
        )
        with stopping_between_steps():
            command.run()
    except KeyboardInterrupt:
        logging.error("Stopped.")
        return 130
    except (ValueError, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        logging.error("%s", error)
        return 1
    return 0


def _preset_flags(arguments: list[str]) -> Iterator[str]:
    """The preset's and the settings file's values as flags, to stand before the user's own."""
    preset, settings = _value_of("--preset", arguments), _value_of("--settings", arguments)
    if preset:
        presets = INVERSION_PRESETS if arguments[0] == "textual-inversion" else PRESETS
        if preset not in presets:
            raise ValueError(f"--preset must be one of {', '.join(presets)}, got {preset!r}.")
        yield from _flags(presets[preset])
    if settings:
        yield from _flags(_read_toml(Path(settings)))


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"'{path}' is not a TOML file: {error}. Correct that line.") from error


def _value_of(flag: str, arguments: list[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == flag and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(flag + "="):
            return argument[len(flag) + 1 :]
    return None


def _flags(values: Mapping[str, Any]) -> Iterator[str]:
    for name, value in _flat(values):
        prefix, _, last = name.replace("_", "-").rpartition(".")
        prefix = f"--{prefix}." if prefix else "--"
        if isinstance(value, bool):
            yield prefix + ("" if value else "no-") + last
        else:
            yield prefix + last
            yield from map(str, value if isinstance(value, list | tuple) else [value])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as dotted names and values."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _device(name: str) -> torch.device:
    if name:
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _new_name(folder: Path, stem: str) -> Path:
    names = itertools.chain([stem], (f"{stem}_{n}" for n in itertools.count(1)))
    return next(path for name in names if not (path := folder / f"{name}.png").exists())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
