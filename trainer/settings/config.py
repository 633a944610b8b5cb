"""All settings of a run, as frozen dataclasses that check their values when created.

The command line, the TOML file and ComfyUI's nodes take names, defaults and descriptions from here:
the docstring below a field is its help text and its tooltip. Settings of one training method are
defined with the method (`methods/`), recommended values in `presets.py`; the types, such as
`Decides`, are explained in `effects.py`. No torch, no file access."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .checks import (
    at_least,
    check_strengths,
    is_finite,
    is_number_of_images,
    is_seed,
    one_of,
    require,
)
from .dataset import Crop as Crop
from .dataset import DatasetConfig as DatasetConfig
from .dataset import Masks as Masks
from .drawing import PreviewConfig as PreviewConfig
from .drawing import PriorConfig as PriorConfig
from .drawing import SamplingConfig as SamplingConfig
from .drawing import ScoringConfig as ScoringConfig
from .effects import ByContent, Decides, NoEffect, OnlyRounding, PhotosPerStep
from .output import FileDtype as FileDtype
from .output import OutputConfig as OutputConfig
from .output import Precision as Precision

Weights = Literal["fp32", "24 bit", "bf16"]
FrozenWeights = Literal["precision", "8 bit"]
PredictionType = Literal["auto", "epsilon", "v", "v-zsnr"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """The optimizer and its learning rate."""

    name: Decides[str] = "AdamW"
    """Optimizer. Bytes of memory per trained weight: AdamW 8, AdamW8bit 2, Adafactor 4, Lion 4,
    Prodigy 16, Adafactor without momentum 0. With Prodigy, which finds the learning rate itself,
    set the learning rate to 1; with Lion, lower it."""
    learning_rate: Decides[float] = 2e-6
    """Learning rate per step. DreamBooth: 1e-6 to 5e-6, or about 2e-4 for the toy model. LoRA:
    about 1e-4, or 2e-3 for the toy model. Textual inversion: 1e-4 to 5e-3, or about 3e-3 for the
    toy model. If it is too high, every prompt draws the photos, or noise; if it is too low, the
    subject is not learned."""
    weight_decay: Decides[float] = 0.01
    """How strongly every weight is pulled towards zero at each step, in units of the learning rate:
    0 to 0.1. More erases what the model knows. Textual inversion does not use it."""
    max_grad_norm: Decides[float] = 1.0
    """Largest norm of the gradients; larger ones are scaled down to it. 1 is usual; 0 turns this
    off, and then a single bad step can spoil the run."""
    lr_schedule: Decides[str] = "constant"
    """How the learning rate changes over the steps. "cosine" and "linear" fall towards 0 and need
    more steps than "constant" for the same likeness."""
    warmup_steps: Decides[int] = 0
    """Steps over which the learning rate rises from 0: none, or up to a tenth of all steps. Must be
    below the number of steps."""
    num_restarts: Decides[int] = 1
    """Number of cosine cycles, 1 to 4, of the schedule "cosine with restarts". Other schedules
    ignore it."""
    anchor: Decides[float] = 0.0
    """How strongly every weight is pulled back to its value before training, so that the model
    keeps what it knows without class images: 2 with a teacher_weight of 1, 4 alone, while 10 lets
    hardly anything be learned; 0 turns it off. It means the same for any learning rate and number
    of steps."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate must be above 0, "
                f"got {self.learning_rate}.")  # fmt: skip
        is_finite("optimizer.learning_rate", self.learning_rate)
        at_least("optimizer.weight_decay", self.weight_decay, 0)
        at_least("optimizer.max_grad_norm", self.max_grad_norm, 0)
        at_least("optimizer.warmup_steps", self.warmup_steps, 0)
        at_least("optimizer.num_restarts", self.num_restarts, 1)
        at_least("optimizer.anchor", self.anchor, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """How the files of a model are read."""

    prediction_type: PredictionType = "auto"
    """What the model predicts: epsilon, v, or v with zero terminal SNR (v-zsnr), where the file is
    wrong or silent. auto: read it from the file."""
    vae: Path | None = None
    """A file whose VAE replaces the checkpoint's, or supplies one that it lacks: a VAE for the same
    kind of model, or a checkpoint. None: the checkpoint's own."""
    clip_skip: int | None = None
    """Layer of the text encoders to use, counted from the last one, which is 1. None: the value
    recorded in the files, otherwise 1 for Stable Diffusion 1 and 2 for 2 and XL."""
    loras: tuple[Path, ...] = ()
    """LoRA files that change the model, one after the other."""
    lora_strengths: tuple[float, ...] = ()
    """How strongly each LoRA changes the model: 1 as trained, 0 not at all. Empty: 1 for all."""

    def __post_init__(self) -> None:
        check_strengths(self.loras, self.lora_strengths)

    @property
    def loras_with_strengths(self) -> list[tuple[Path, float]]:
        strengths = self.lora_strengths or (1.0,) * len(self.loras)
        return list(zip(self.loras, strengths, strict=True))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """One training run. The result depends on these settings and on the content of the files that
    they name."""

    base: ByContent[Path]
    """The checkpoint of Stable Diffusion 1, 2 or XL to start from (.safetensors or .ckpt), or "toy"
    for the embedded toy model. It is not changed."""
    dataset: DatasetConfig
    embedding: ByContent[Path | None] = None
    """An embedding file of textual inversion, so that prompts can contain its placeholder. Not set:
    no embedding."""
    vae: ByContent[Path | None] = None
    """A file whose VAE replaces the base model's, or supplies one that it lacks: a VAE for the
    same kind of model, or a checkpoint. The trained checkpoint contains it. Not set: the base
    model's own."""
    prediction_type: Decides[PredictionType] = "auto"
    """What the base model predicts: "auto" reads it from the file, and takes epsilon if the file
    does not say; epsilon (the noise), v (the velocity) or v-zsnr (v with zero terminal SNR) where
    the file is wrong or silent. With the wrong one, every image is noise."""
    prior: PriorConfig = field(default_factory=PriorConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preview: NoEffect[PreviewConfig] = field(default_factory=PreviewConfig)
    scoring: NoEffect[ScoringConfig] = field(default_factory=ScoringConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    steps: Decides[int] = 400
    """Training steps. DreamBooth: about 100 per photo for things, 200 for faces. Textual inversion:
    1000 to 3000. Toy model: 300. Too few give only a vague likeness; with too many, every prompt
    draws the photos, background and all."""
    batch_size: PhotosPerStep[int] = 4
    """Photos per pass through the model, 1 to 8; class images are added to them. More takes more
    memory."""
    gradient_accumulation: PhotosPerStep[int] = 1
    """Passes per step. 4 passes of batch size 1 equal one of batch size 4, but are slower and need
    less memory. 1 is usual; 2 to 8 make up for a small batch size."""
    seed: Decides[int] = 0
    """Seed of all random choices in the run. With another seed it is another run, trained from the
    start."""
    precision: Decides[Precision] = "fp32"
    """Number format of the computation: bf16 on newer NVIDIA cards, fp16 on older ones, otherwise
    fp32. bf16 and fp16 are faster and take less memory; in fp16 numbers may overflow. Trained
    weights stay in fp32 in any case."""
    gradient_checkpointing: OnlyRounding[bool] = False
    """Recompute activations instead of storing them, if memory is short: less memory, about a
    quarter slower."""
    ema: Decides[bool] = False
    """Save a running average of the weights (EMA) instead of the last ones. The result is about the
    same, for more memory."""
    ema_decay: Decides[float] = 0.999
    """With EMA: how slowly the average follows the weights, after a warm-up. 0.99 to 0.9999; higher
    is slower."""
    # Class images are weighted like photos, as in DreamBooth's equation 2; diffusers' script
    # weights photos alone.
    min_snr_gamma: Decides[float] = 0.0
    """Weight each image's loss by min(SNR, gamma) / SNR at its timestep, so that images with little
    noise count less. 5 is usual, 0 turns this off. Small values leave mostly very noisy images,
    which teach no detail."""
    noise_offset: Decides[float] = 0.0
    """Standard deviation of extra noise that is the same all over a channel: 0.05 to 0.1 allows
    darker and brighter images, 0 turns this off. Much more makes images too dark or too bright."""
    channels_last: OnlyRounding[bool] = False
    """Store the U-Net's activations in the channels-last layout: faster on NVIDIA cards in fp16 or
    bf16, little gain elsewhere."""
    compile: OnlyRounding[bool] = False
    """Compile the U-Net first (torch.compile): about a minute of waiting, then faster steps. For
    long runs; needs a C++ compiler."""
    clip_skip: Decides[int | None] = None
    """Layer of the text encoder to use, counted from the last one: 1 is the last, as for most
    models of Stable Diffusion 1; 2 is the next to last, for models that were trained so: XL, 2 and
    many of drawings. Images come out right only with the value that was trained. Not set: the value
    recorded in the files of the model, otherwise what is usual for its kind."""
    weights: Decides[Weights] = "fp32"
    """Number format of the trained weights in memory. "24 bit" takes 3 bytes per weight instead of
    6, and trains like fp32; "bf16" takes 2, but its rounding adds noise that is larger than what a
    weight learns. Both need precision bf16. Not with Prodigy."""
    gradient_release: Decides[bool] = False
    """Update each weight as soon as its gradient is known, and discard the gradient. Saves 2 to 4
    bytes per trained weight. max_grad_norm has no effect then. Not with Prodigy or fp16."""
    offload: OnlyRounding[bool] = False
    """Keep the optimizer's state and the lowest bits of the weights in main memory, and load them
    one weight at a time. Saves 3 or more bytes per trained weight; steps take longer. Needs
    gradient_release."""
    sharded: OnlyRounding[bool] = False
    """With several GPUs (torchrun): split the trained weights, their gradients and the optimizer's
    state among them, instead of keeping all of them on each. For models that do not fit on one;
    steps take longer, because weights are exchanged too. Needs weights in fp32, and AdamW or Lion;
    not for LoRA and textual inversion."""
    frozen_weights: Decides[FrozenWeights] = "precision"
    """Number format of the model's weights that are not trained, which are most of a LoRA's memory:
    that of the precision, or "8 bit", which takes half as much, but is slower and rounds weights by
    about 1 %. Only for LoRA and textual inversion."""

    loras: ByContent[tuple[Path, ...]] = ()
    """LoRA files that change the base model before it is trained, one after the other. Empty:
    none."""
    lora_strengths: Decides[tuple[float, ...]] = ()
    """How strongly each LoRA changes the base model: 1 as trained, 0 not at all. Empty: 1 for all.
    """

    def __post_init__(self) -> None:
        check_strengths(self.loras, self.lora_strengths)
        is_number_of_images("batch_size", self.batch_size, 1)
        for name in ("steps", "gradient_accumulation"):
            at_least(name, getattr(self, name), 1)
        is_seed("seed", self.seed)
        for name in ("min_snr_gamma", "noise_offset"):
            at_least(name, getattr(self, name), 0)
        if self.clip_skip is not None:
            at_least("clip_skip", self.clip_skip, 1)
        one_of("precision", self.precision, get_args(Precision))
        one_of("weights", self.weights, get_args(Weights))
        one_of("frozen_weights", self.frozen_weights, get_args(FrozenWeights))
        one_of("prediction_type", self.prediction_type, get_args(PredictionType))
        require(0 < self.ema_decay < 1, "ema_decay must be between 0 and 1, got "
                f"{self.ema_decay}.")  # fmt: skip

    @property
    def photos_per_step(self) -> int:
        """The number of photos of an optimizer step."""
        return self.batch_size * self.gradient_accumulation

    @property
    def model_options(self) -> ModelOptions:
        names = [field.name for field in dataclasses.fields(ModelOptions)]
        return ModelOptions(**{name: getattr(self, name) for name in names})

    def replace(self, changes: Mapping[str, Any]) -> TrainingConfig:
        """Return a copy with some settings changed; for nested settings, pass nested mappings."""
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
