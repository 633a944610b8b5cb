"""Every option of a run on one page: frozen dataclasses, checked when made.

The command line, the TOML file and ComfyUI's widgets all read their names, defaults and help here.
Options of one training method live with the method (`methods/`), good values of them all in
`presets.py`, what the types say of a run's result in `effects.py`. No torch, no file access."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from ..storage import names
from .checks import at_least, is_text, one_of, require
from .effects import ByContent, Decides, NoEffect, OnlyRounding, PhotosPerStep

Precision = Literal["fp32", "fp16", "bf16"]
FileDtype = Literal["as input", Precision]
Crop = Literal["center", "random"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetConfig:
    """The photos of the subject, and how they are brought to size."""

    photos: ByContent[tuple[Path, ...]]
    """A folder of photos, or the photos themselves."""
    prompt: Decides[str]
    """The instance prompt, such as "a photo of sks dog": what the photos show. A text file beside
    a photo (photo.jpg, photo.txt) takes its place for that photo."""
    resolution: Decides[int | None] = None
    """Shorter side of a training image, in pixels; none takes the model's own, 512 for Stable
    Diffusion 1. Lower saves memory, and below half of the model's own spoils the result."""
    crop: Decides[Crop] = "center"
    """What is kept of a photo that is not square: its centre, or a place drawn once per photo."""
    buckets: Decides[bool] = False
    """Keep each photo's own shape (to 64 pixels) at about the same area, rather than cropping to a
    square. Photos of different shapes are then computed one shape after the other."""
    mirror: Decides[bool] = False
    """Also train on each photo's mirror image. Wrong for faces, lettering and one-sided things."""
    background: Decides[str] = "white"
    """Colour put behind transparent pixels: a name or #rrggbb."""
    allow_upscaling: Decides[bool] = False
    """Enlarge photos smaller than the resolution rather than refuse them. They will look soft."""

    def __post_init__(self) -> None:
        require(len(self.photos) > 0, "dataset.photos is empty. Name a folder of photos.")
        require(self.prompt.strip() != "", "dataset.prompt is empty. Describe the photos, such as "
                "'a photo of sks dog'.")  # fmt: skip
        is_text("dataset.prompt", self.prompt)
        if self.resolution is not None:
            at_least("dataset.resolution", self.resolution, 8)
            require(self.resolution % 8 == 0, f"dataset.resolution must be a multiple of 8, "
                    f"got {self.resolution}.")  # fmt: skip
        one_of("dataset.crop", self.crop, get_args(Crop))


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """How images are made from prompts."""

    scheduler: Decides[str] = "DDIM"
    """Noise scheduler, by the name in `schedulers.SCHEDULERS`. DDIM forgives an overfitted model
    most, LMSDiscrete least."""
    steps: Decides[int] = 50
    """Denoising steps per image, 1 to 1000. About 100 help when images come out noisy."""
    guidance_scale: Decides[float] = 7.5
    """How strongly the prompt is followed; 1 is no guidance, above 15 colours burn out."""
    negative_prompt: Decides[str] = ""
    """What the images should not show."""
    seed: Decides[int] = 0
    """Image number i starts from seed + i, whatever the scheduler and the batch."""
    batch_size: OnlyRounding[int] = 4
    """Images made at once; changes memory and speed, never the images' starting noise."""

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 1000, f"steps must be between 1 and 1000, got {self.steps}.")
        at_least("guidance_scale", self.guidance_scale, 1)
        at_least("seed", self.seed, 0)
        at_least("batch_size", self.batch_size, 1)
        is_text("negative_prompt", self.negative_prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class PriorConfig:
    """Prior preservation: training on other images of the class, so that it is not forgotten."""

    weight: Decides[float] = 0.0
    """Weight of the class images' loss beside the photos'; 0 is off, 1 the usual."""
    prompt: Decides[str] = ""
    """The class prompt, such as "a photo of a dog": the instance prompt without its identifier."""
    images: ByContent[tuple[Path, ...]] = ()
    """A folder of your own class images, or the images themselves; none has the base model make
    them."""
    num_images: Decides[int] = 200
    """How many class images the base model makes. Below 50 they begin to be learned by heart."""
    ratio: Decides[float] = 1.0
    """Class images per photo in each batch."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """How the class images are made."""

    def __post_init__(self) -> None:
        at_least("prior.weight", self.weight, 0)
        require(self.weight == 0 or self.prompt.strip() != "", "prior.weight is "
                f"{self.weight:g} but prior.prompt is empty. Name the class, such as 'a photo of "
                "a dog', or set prior.weight to 0.")  # fmt: skip
        is_text("prior.prompt", self.prompt)
        at_least("prior.num_images", self.num_images, 1)
        require(self.ratio > 0, f"prior.ratio must be above 0, got {self.ratio}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """What turns gradients into new weights."""

    name: Decides[str] = "AdamW"
    """Optimizer, by the name in `optimizers.OPTIMIZERS`."""
    learning_rate: Decides[float] = 2e-6
    """Per step. 1e-6 to 5e-6 for Stable Diffusion 1; too high and every prompt gives the training
    photos. Prodigy finds its own and takes 1."""
    weight_decay: Decides[float] = 0.01
    """Pull of every weight towards zero, per step and in units of the learning rate."""
    max_grad_norm: Decides[float] = 1.0
    """Gradients longer than this are shortened to it; 0 leaves them."""
    lr_schedule: Decides[str] = "constant"
    """How the learning rate runs over the steps, by the name in `lr_schedules.LR_SCHEDULES`."""
    warmup_steps: Decides[int] = 0
    """Steps over which the learning rate rises from 0."""
    num_restarts: Decides[int] = 1
    """Cosines in "cosine with restarts"."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate must be above 0, "
                f"got {self.learning_rate}.")  # fmt: skip
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        at_least("optimizer.max_grad_norm", self.max_grad_norm, 0)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        at_least("optimizer.num_restarts", self.num_restarts, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewConfig:
    """Images made during training, from the weights as they are then."""

    prompts: tuple[str, ...] = ()
    """One image per prompt; none makes no previews."""
    every: int = 100
    """Steps between previews."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(steps=25))
    """How the previews are made. They never change the run."""

    def __post_init__(self) -> None:
        at_least("preview.every", self.every, 1)
        for prompt in self.prompts:
            is_text("preview.prompts", prompt)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringConfig:
    """How a judge scores previews, and what counts for the best step: see `best_step.py`."""

    class_prompt: str = ""
    """Such as "a photo of a dog", to see whether the class is kept; empty takes prior.prompt."""
    num_class_images: int = 8
    """Images of the class prompt drawn and scored beside the previews; 0 leaves the class out."""
    subject_weight: float = 1.0
    """What it counts in the balance that the subject is learned."""
    prompt_weight: float = 1.0
    """What it counts that prompts are followed; 0 is nothing."""
    prior_weight: float = 1.0
    """What it counts that the class is kept; 0 is nothing."""

    def __post_init__(self) -> None:
        is_text("scoring.class_prompt", self.class_prompt)
        require(self.subject_weight > 0, "scoring.subject_weight must be above 0, got "
                f"{self.subject_weight}.")  # fmt: skip
        for name in ("num_class_images", "prompt_weight", "prior_weight"):
            at_least(f"scoring.{name}", getattr(self, name), 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputConfig:
    """Where the trained checkpoint goes."""

    folder: NoEffect[Path] = Path("out")
    """Made if it is missing."""
    embedding_folder: NoEffect[Path | None] = None
    """Where a learned embedding goes; none takes folder."""
    name: NoEffect[str] = "dreambooth"
    """File name without ending. A counter is added rather than overwriting a file."""
    save_every: NoEffect[int] = 0
    """Steps between intermediate checkpoints; 0 saves only at the end."""
    keep: NoEffect[int] = 3
    """How many intermediate checkpoints stay; the oldest goes once the newest is safe."""
    state_every: NoEffect[int] = 100
    """Steps between states, from which a run that was ended early goes on; 0 keeps one only when it
    is stopped. Each takes as much time and space as several checkpoints."""
    keep_state: NoEffect[bool] = False
    """Keep the last state of a finished run, so that a run of more steps goes on from there."""
    dtype: Decides[FileDtype] = "as input"
    """Number format of the file's trained tensors."""
    private: Decides[bool] = False
    """Leave prompts and the names of photos out of the file, whose metadata otherwise says what it
    was trained on."""

    def __post_init__(self) -> None:
        at_least("output.save_every", self.save_every, 0)
        at_least("output.keep", self.keep, 1)
        at_least("output.state_every", self.state_every, 0)
        one_of("output.dtype", self.dtype, get_args(FileDtype))
        fault = names.fault(self.name)
        require(not fault, f"output.name must be a plain file name, got {self.name!r}: {fault}.")
        size = len(self.name.encode())
        require(size <= names.MAX_BYTES, f"output.name is {size} bytes long, and file names have "
                f"room for {names.MAX_BYTES} beside what is added to them. Choose a shorter "
                "one.")  # fmt: skip
        is_text("output.folder", str(self.folder))
        is_text("output.embedding_folder", str(self.embedding_folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One DreamBooth run. With the base model's and the images' bytes it decides the result."""

    base: ByContent[Path]
    """The Stable Diffusion checkpoint to start from (.safetensors or .ckpt), or "toy"."""
    dataset: DatasetConfig
    embedding: ByContent[Path | None] = None
    """The file of a textual inversion, whose placeholder then stands for its vectors in prompts."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preview: NoEffect[PreviewConfig] = field(default_factory=PreviewConfig)
    scoring: NoEffect[ScoringConfig] = field(default_factory=ScoringConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    steps: Decides[int] = 400
    """Optimizer steps. More draw the subject better until the model draws nothing else."""
    batch_size: PhotosPerStep[int] = 4
    """Photos per pass through the model; class images come on top."""
    gradient_accumulation: PhotosPerStep[int] = 1
    """Passes per step: 4 passes of batch 1 equal batch 4, slower and in less memory."""
    seed: Decides[int] = 0
    """Decides every random draw of the run."""
    precision: Decides[Precision] = "fp32"
    """Number format of the computation. The weights being trained are kept in fp32 under each."""
    gradient_checkpointing: OnlyRounding[bool] = False
    """Compute activations twice rather than keep them: less memory, about a quarter slower."""
    ema: Decides[bool] = False
    """Save a running average of the weights instead of the last ones."""
    ema_decay: Decides[float] = 0.999
    """How slowly the average follows, once warmed up."""
    min_snr_gamma: Decides[float] = 0.0
    """Weigh each image's loss by min(SNR, gamma) / SNR at its own timestep, class images like
    photos (as DreamBooth's equation 2; diffusers' script weighs photos alone); 5 is usual, 0 off.
    """
    noise_offset: Decides[float] = 0.0
    """Standard deviation of noise shared by a whole channel; 0.05 to 0.1 reaches darker and
    brighter images, 0 is off."""
    channels_last: OnlyRounding[bool] = False
    """Store the U-Net's activations channels last: faster on NVIDIA cards in fp16 or bf16."""
    compile: OnlyRounding[bool] = False
    """Compile the U-Net first (torch.compile): a minute's wait, then faster steps."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gradient_accumulation"):
            at_least(name, getattr(self, name), 1)
        for name in ("seed", "min_snr_gamma", "noise_offset"):
            at_least(name, getattr(self, name), 0)
        one_of("precision", self.precision, get_args(Precision))
        require(0 < self.ema_decay < 1, "ema_decay must lie between 0 and 1, got "
                f"{self.ema_decay}.")  # fmt: skip

    def replace(self, changes: Mapping[str, Any]) -> TrainingConfig:
        """The same settings with some changed; nested ones as nested mappings."""
        return _replace(self, changes)


def _replace(settings: Any, changes: Mapping[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(settings)]
    for name in changes:
        one_of("setting", name, known)
    old = {name: getattr(settings, name) for name in changes}
    new = {
        name: _replace(old[name], value) if isinstance(value, Mapping) else value
        for name, value in changes.items()
    }
    return dataclasses.replace(settings, **new)
