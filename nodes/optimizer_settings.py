"""Optimizer Settings: optional settings of the training nodes."""

from __future__ import annotations

from typing import Any, get_args

from comfy_api.latest import io

from ..trainer.methods.full import FullFineTune
from ..trainer.optimization.lr_schedules import LR_SCHEDULES
from ..trainer.optimization.optimizers import OPTIMIZERS
from ..trainer.settings.config import FileDtype, FrozenWeights, OptimizerConfig, Precision, Weights
from .running import node_schema, runs_once
from .sockets import OptimizerSocket, TrainingSettings
from .widgets import DEFAULTS, learning_rate_input, pop_fields, widget


class OptimizerSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothOptimizerSettings",
            display_name="Optimizer Settings",
            description="Further settings of DreamBooth Train and Textual Inversion Train: "
            "optimizer, learning-rate schedule, number formats, memory, and the weighting of "
            "losses.",
            search_aliases=[
                "dreambooth",
                "training settings",
                "learning rate schedule",
                "lr schedule",
                "precision",
                "low memory vram",
                "gradient checkpointing",
                "8-bit AdamW",
                "Adafactor",
                "ema",
                "min snr",
                "prior preservation without class images",
            ],
            inputs=_widgets(),
            outputs=[
                OptimizerSocket.Output(
                    "optimizer_settings",
                    display_name="optimizer settings",
                    tooltip="Connect to DreamBooth Train or Textual Inversion Train.",
                )
            ],
        )

    @classmethod
    @runs_once()
    def execute(
        cls,
        optimizer: str,
        file_dtype: str,
        text_encoder_learning_rate: float,
        text_encoder_stop_step: int,
        train_embedding: bool,
        private: bool = DEFAULTS.output.private,
        train_text_encoder_2: bool = False,
        text_encoder_2_learning_rate: float = 0,
        text_encoder_2_stop_step: int = 0,
        teacher_weight: float = DEFAULTS.prior.teacher_weight,
        teacher_ratio: float = DEFAULTS.prior.teacher_ratio,
        class_prompt: str = "",
        **settings: Any,
    ) -> io.NodeOutput:
        config = {
            "optimizer": {"name": optimizer, **pop_fields(OptimizerConfig, settings)},
            "output": {"dtype": file_dtype, "private": private},
            **settings,
        }
        if teacher_weight:
            prompt = {"prompt": class_prompt} if class_prompt.strip() else {}
            config["prior"] = {
                "teacher_weight": teacher_weight, "teacher_ratio": teacher_ratio, **prompt
            }  # fmt: skip
        DEFAULTS.replace(config)  # Impossible values are reported here, not on the training node.
        method = {
            "text_encoder_learning_rate": text_encoder_learning_rate or None,
            "text_encoder_stop_step": text_encoder_stop_step or None,
            "train_embedding": train_embedding,
            "train_text_encoder_2": train_text_encoder_2,
            "text_encoder_2_learning_rate": text_encoder_2_learning_rate or None,
            "text_encoder_2_stop_step": text_encoder_2_stop_step or None,
        }
        return io.NodeOutput(TrainingSettings(config=config, method=method))


def _widgets() -> list[io.Input]:
    """In the order in which saved workflows store their values: append new ones, as optional."""
    optimizer, method = DEFAULTS.optimizer, FullFineTune()
    return [
        widget(io.Combo, optimizer, "name", shown_as="optimizer", options=list(OPTIMIZERS)),
        widget(io.Float, optimizer, "weight_decay", min=0.0, max=1.0, step=0.001),
        widget(io.Float, optimizer, "max_grad_norm", min=0.0, max=1000.0, step=0.1),
        widget(io.Combo, optimizer, "lr_schedule", options=list(LR_SCHEDULES)),
        widget(io.Int, optimizer, "warmup_steps", min=0, max=100000),
        widget(io.Int, optimizer, "num_restarts", min=1, max=100, advanced=True),
        learning_rate_input(method, "text_encoder_learning_rate", minimum=0.0, advanced=True),
        widget(io.Int, method, "text_encoder_stop_step", min=0, max=1000000, advanced=True),
        widget(io.Combo, DEFAULTS, "precision", options=list(get_args(Precision))),
        widget(io.Int, DEFAULTS, "gradient_accumulation", min=1, max=1024),
        widget(io.Boolean, DEFAULTS, "gradient_checkpointing"),
        widget(io.Boolean, DEFAULTS, "channels_last", advanced=True),
        widget(io.Boolean, DEFAULTS, "compile", advanced=True),
        widget(
            io.Combo,
            DEFAULTS.output,
            "dtype",
            shown_as="file_dtype",
            options=list(get_args(FileDtype)),
            advanced=True,
        ),
        widget(io.Boolean, DEFAULTS, "ema"),
        widget(
            io.Float,
            DEFAULTS,
            "ema_decay",
            min=0.5,
            max=0.99999,
            step=0.0001,
            round=1e-6,
            advanced=True,
        ),
        widget(io.Float, DEFAULTS, "min_snr_gamma", min=0.0, max=100.0, step=0.5),
        widget(io.Float, DEFAULTS, "noise_offset", min=0.0, max=1.0, step=0.01),
        widget(
            io.Boolean,
            method,
            "train_embedding",
            note="For DreamBooth Train after Textual Inversion Train.",
            advanced=True,
        ),
        widget(io.Boolean, DEFAULTS.output, "private", advanced=True),
        widget(io.Combo, DEFAULTS, "weights", options=list(get_args(Weights)), advanced=True),
        widget(io.Boolean, DEFAULTS, "gradient_release", advanced=True),
        widget(io.Boolean, DEFAULTS, "offload", advanced=True),
        *_widgets_of_second_text_encoder(method),
        widget(
            io.Combo,
            DEFAULTS,
            "frozen_weights",
            options=list(get_args(FrozenWeights)),
            optional=True,
            advanced=True,
        ),
        *_widgets_of_anchor_and_teacher(),
    ]


def _widgets_of_anchor_and_teacher() -> list[io.Input]:
    return [
        widget(io.Float, DEFAULTS.optimizer, "anchor", min=0.0, max=100.0, step=0.5),
        widget(
            io.Float, DEFAULTS.prior, "teacher_weight", min=0.0, max=10.0, step=0.05, advanced=True
        ),
        widget(
            io.Float, DEFAULTS.prior, "teacher_ratio", min=0.01, max=1.0, step=0.05, advanced=True
        ),
        io.String.Input(
            "class_prompt",
            default="",
            optional=True,
            advanced=True,
            tooltip="What the teacher is asked for if teacher_weight is above 0: the instance "
            'prompt without its rare word, such as "a photo of a dog". Empty: the prompt of the '
            "class images.",
        ),
    ]


def _widgets_of_second_text_encoder(method: FullFineTune) -> list[io.Input]:
    shown: dict[str, Any] = {"optional": True, "advanced": True}
    return [
        widget(io.Boolean, method, "train_text_encoder_2", **shown),
        learning_rate_input(method, "text_encoder_2_learning_rate", minimum=0.0, **shown),
        widget(io.Int, method, "text_encoder_2_stop_step", min=0, max=1000000, **shown),
    ]
