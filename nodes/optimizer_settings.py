"""Optimizer Settings: what plugs into a training node when its defaults are not enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.methods.full import FullFineTune
from ..trainer.optimization.lr_schedules import LR_SCHEDULES
from ..trainer.optimization.optimizers import OPTIMIZERS
from ..trainer.settings.config import DatasetConfig, FileDtype, TrainingConfig
from .errors import naming_widgets
from .sockets import CATEGORY, OptimizerSocket, TrainingSettings
from .widgets import learning_rate_input, precision_input

RUN = TrainingConfig(base=Path("toy"), dataset=DatasetConfig(photos=(Path(),), prompt="-"))
"""Its defaults are the widgets'; the rest is of no matter."""


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothOptimizerSettings",
            display_name="Optimizer Settings",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Further settings of DreamBooth Train and Textual Inversion Train: the "
            "optimizer and its learning-rate schedule, number formats, memory, and how losses are "
            "weighed.",
            search_aliases=["dreambooth", "precision", "memory", "ema", "min snr", "lr schedule"],
            inputs=[
                *_optimizer_inputs(),
                *_text_encoder_inputs(),
                *_computation_inputs(),
                *_loss_inputs(),
                _embedding_input(),
                _private_input(),
            ],
            outputs=[
                OptimizerSocket.Output(
                    "optimizer_settings",
                    display_name="optimizer settings",
                    tooltip="For DreamBooth Train or Textual Inversion Train.",
                )
            ],
        )

    @classmethod
    @naming_widgets()
    def execute(
        cls,
        file_dtype: str,
        text_encoder_learning_rate: float,
        text_encoder_stop_step: int,
        train_embedding: bool,
        private: bool = RUN.output.private,
        **settings: Any,
    ) -> io.NodeOutput:
        names = ("weight_decay", "max_grad_norm", "lr_schedule", "warmup_steps", "num_restarts")
        optimizer = {name: settings.pop(name) for name in names}
        optimizer["name"] = settings.pop("optimizer")
        config = {
            **settings,
            "optimizer": optimizer,
            "output": {"dtype": file_dtype, "private": private},
        }
        RUN.replace(config)  # What cannot be is said on this node rather than on the training.
        method = {
            "text_encoder_learning_rate": text_encoder_learning_rate or None,
            "text_encoder_stop_step": text_encoder_stop_step or None,
            "train_embedding": train_embedding,
        }
        return io.NodeOutput(TrainingSettings(config=config, method=method))


def _optimizer_inputs() -> list[io.Input]:
    optimizer = RUN.optimizer
    return [
        io.Combo.Input(
            "optimizer",
            options=list(OPTIMIZERS),
            default=optimizer.name,
            tooltip=f"Bytes of memory per trained weight: {_bytes()}. Prodigy finds its own "
            "learning rate: set that to 1.",
        ),
        io.Float.Input(
            "weight_decay",
            default=optimizer.weight_decay,
            min=0.0,
            max=1.0,
            step=0.001,
            tooltip="Pull of every weight towards zero, per step and in units of the learning "
            "rate. 0 to 0.1.",
        ),
        io.Float.Input(
            "max_grad_norm",
            default=optimizer.max_grad_norm,
            min=0.0,
            max=1000.0,
            step=0.1,
            tooltip="Gradients longer than this are shortened to it; 0 leaves them. 1 is usual.",
        ),
        io.Combo.Input(
            "lr_schedule",
            options=list(LR_SCHEDULES),
            default=optimizer.lr_schedule,
            tooltip="How the learning rate runs over the steps.",
        ),
        io.Int.Input(
            "warmup_steps",
            default=optimizer.warmup_steps,
            min=0,
            max=100000,
            tooltip="Steps over which the learning rate rises from 0. Below the number of steps.",
        ),
        io.Int.Input(
            "num_restarts",
            default=optimizer.num_restarts,
            min=1,
            max=100,
            advanced=True,
            tooltip="Number of cosines in 'cosine with restarts'; others take no notice.",
        ),
    ]


def _bytes() -> str:
    return ", ".join(f"{name} {choice.bytes_per_weight}" for name, choice in OPTIMIZERS.items())


def _text_encoder_inputs() -> list[io.Input]:
    return [
        learning_rate_input(
            "text_encoder_learning_rate",
            0.0,
            "The text encoder's own learning rate per step; 0 takes the one of the run. Half of "
            "that is usual.",
            minimum=0.0,
            advanced=True,
        ),
        io.Int.Input(
            "text_encoder_stop_step",
            default=0,
            min=0,
            max=1000000,
            advanced=True,
            tooltip="The step after which the text encoder is left as it is; 0 trains it to the "
            "end.",
        ),
    ]


def _computation_inputs() -> list[io.Input]:
    return [
        precision_input(
            RUN.precision,
            "Number format of the computation; bf16 and fp16 are faster and take less memory. The "
            "weights being trained are kept in fp32 under each.",
        ),
        io.Int.Input(
            "gradient_accumulation",
            default=RUN.gradient_accumulation,
            min=1,
            max=1024,
            tooltip="Passes per step: 4 passes of batch 1 equal batch 4, slower and in less "
            "memory.",
        ),
        io.Boolean.Input(
            "gradient_checkpointing",
            default=RUN.gradient_checkpointing,
            tooltip="Compute activations twice rather than keep them: less memory, about a quarter "
            "slower.",
        ),
        io.Boolean.Input(
            "channels_last",
            default=RUN.channels_last,
            advanced=True,
            tooltip="Faster on NVIDIA cards in fp16 or bf16.",
        ),
        io.Boolean.Input(
            "compile",
            default=RUN.compile,
            advanced=True,
            tooltip="Compile the U-Net first: a minute's wait, then faster steps. Needs a C++ "
            "compiler.",
        ),
        io.Combo.Input(
            "file_dtype",
            options=list(get_args(FileDtype)),
            default=RUN.output.dtype,
            advanced=True,
            tooltip="Number format of the trained weights in the checkpoint: the base model's, or "
            "one of these.",
        ),
    ]


def _loss_inputs() -> list[io.Input]:
    return [
        io.Boolean.Input(
            "ema",
            default=RUN.ema,
            tooltip="Save a running average of the weights instead of the last ones.",
        ),
        io.Float.Input(
            "ema_decay",
            default=RUN.ema_decay,
            min=0.5,
            max=0.99999,
            step=0.0001,
            round=1e-6,
            advanced=True,
            tooltip="How slowly the average follows: 0.99 to 0.9999.",
        ),
        io.Float.Input(
            "min_snr_gamma",
            default=RUN.min_snr_gamma,
            min=0.0,
            max=100.0,
            step=0.5,
            tooltip="Weigh little-noised images less, photos and class images alike: min(SNR, "
            "gamma) / SNR. 5 is usual, 0 is off.",
        ),
        io.Float.Input(
            "noise_offset",
            default=RUN.noise_offset,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Noise shared by a whole channel, as its standard deviation; 0.05 to 0.1 "
            "reaches darker and brighter images, 0 is off.",
        ),
    ]


def _embedding_input() -> io.Input:
    return io.Boolean.Input(
        "train_embedding",
        default=FullFineTune().train_embedding,
        advanced=True,
        tooltip="Of DreamBooth Train after Textual Inversion Train: go on training the new word's "
        "vectors too, into an embedding of their own; otherwise they stay as they are.",
    )


def _private_input() -> io.Input:
    """Stands last and is optional: saved workflows know widgets by their places."""
    return io.Boolean.Input(
        "private",
        default=RUN.output.private,
        optional=True,
        advanced=True,
        tooltip="Leave prompts and the names of photos out of the file, whose metadata otherwise "
        "says what it was trained on. For files that are published.",
    )
