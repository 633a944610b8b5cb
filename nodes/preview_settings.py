"""Preview Settings: what a training node draws and scores while it trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.sampling.schedulers import check as check_scheduler
from ..trainer.settings.config import PreviewConfig, SamplingConfig, ScoringConfig
from ..trainer.settings.descriptions import descriptions
from . import folders
from .running import node_schema, runs_once
from .sockets import PreviewPlan, PreviewSocket
from .widgets import (
    DEFAULTS,
    NONE,
    judge_input,
    lines,
    pop_fields,
    prompts_input,
    sampling_inputs,
    scheduler_input,
    widget,
)


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothPreviewSettings",
            display_name="Preview Settings",
            description="Images that DreamBooth Train and Textual Inversion Train draw during "
            "training, to show when the subject is learned. With a judge (CLIP or DINO) they are "
            "scored, and the best step is saved. They never change the result.",
            search_aliases=[
                "dreambooth",
                "training preview",
                "training samples",
                "validation",
                "overfitting",
                "best step",
            ],
            inputs=[
                prompts_input(f"{descriptions(PreviewConfig)['prompts']} One prompt per line."),
                widget(io.Int, DEFAULTS.preview, "every", min=1, max=100000),
                scheduler_input(DEFAULTS.preview.sampling),
                *sampling_inputs(
                    DEFAULTS.preview.sampling,
                    seed_note="It is the same at every preview, so that they can be compared.",
                ),
                *_scoring_inputs(),
            ],
            outputs=[
                PreviewSocket.Output(
                    "preview_settings",
                    display_name="preview settings",
                    tooltip="Connect to DreamBooth Train or Textual Inversion Train.",
                )
            ],
        )

    @classmethod
    @runs_once(prompts="\n".join)
    def execute(cls, prompts: str, every: int, judge: str = NONE, **settings: Any) -> io.NodeOutput:
        scoring = ScoringConfig(**pop_fields(ScoringConfig, settings))
        check_scheduler(settings["scheduler"])
        preview = PreviewConfig(
            prompts=lines(prompts, "prompts"), every=every, sampling=SamplingConfig(**settings)
        )
        path = None if judge == NONE else folders.find_judge(judge)
        return io.NodeOutput(PreviewPlan(preview=preview, scoring=scoring, judge=path))


def _scoring_inputs() -> list[io.Input]:
    """All optional, because workflows saved before them have no values for them."""
    scoring = DEFAULTS.scoring
    return [
        judge_input(can_be_none=True, optional=True),
        widget(io.String, scoring, "class_prompt"),
        widget(io.Int, scoring, "num_class_images", min=0, max=100, advanced=True),
        _weight_input("subject_weight", 0.01),
        _weight_input("prompt_weight", 0.0),
        _weight_input("prior_weight", 0.0),
    ]


def _weight_input(name: str, minimum: float) -> io.Input:
    return widget(
        io.Float,
        DEFAULTS.scoring,
        name,
        min=minimum,
        max=10.0,
        step=0.05,
        round=0.01,
        advanced=True,
    )
