"""Preview Settings: what a training node draws while it trains."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer.sampling.schedulers import check as check_scheduler
from ..trainer.settings.config import PreviewConfig, SamplingConfig, ScoringConfig
from . import folders
from .errors import naming_widgets
from .sockets import CATEGORY, PreviewPlan, PreviewSocket
from .widgets import NONE, judge_input, lines, prompts_input, sampling_inputs, scheduler_input

DEFAULT = PreviewConfig()
SCORING = ScoringConfig()


class PreviewSettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="DreamBoothPreviewSettings",
            display_name="Preview Settings",
            category=CATEGORY,
            essentials_category=CATEGORY,
            description="Images that DreamBooth Train and Textual Inversion Train draw while they "
            "train, to see when the subject is learned. With a judge they are scored, and the best "
            "step is kept. They never change the result.",
            search_aliases=["dreambooth", "samples", "validation", "overfitting", "best step"],
            inputs=[
                prompts_input(),
                io.Int.Input(
                    "every",
                    default=DEFAULT.every,
                    min=1,
                    max=100000,
                    tooltip="Steps between previews. Each takes as long as a few training steps.",
                ),
                scheduler_input(DEFAULT.sampling),
                *sampling_inputs(
                    DEFAULT.sampling,
                    seed_tooltip="Preview number i starts from seed + i, each time the same, so "
                    "that they can be compared.",
                ),
                *_scoring_inputs(),
            ],
            outputs=[
                PreviewSocket.Output(
                    "preview_settings",
                    display_name="preview settings",
                    tooltip="For DreamBooth Train or Textual Inversion Train.",
                )
            ],
        )

    @classmethod
    @naming_widgets()
    def execute(
        cls,
        prompts: str,
        every: int,
        judge: str = NONE,
        class_prompt: str = SCORING.class_prompt,
        num_class_images: int = SCORING.num_class_images,
        subject_weight: float = SCORING.subject_weight,
        prompt_weight: float = SCORING.prompt_weight,
        prior_weight: float = SCORING.prior_weight,
        **sampling: Any,
    ) -> io.NodeOutput:
        check_scheduler(sampling["scheduler"])
        scoring = ScoringConfig(
            class_prompt=class_prompt,
            num_class_images=num_class_images,
            subject_weight=subject_weight,
            prompt_weight=prompt_weight,
            prior_weight=prior_weight,
        )
        preview = PreviewConfig(
            prompts=lines(prompts, "prompts"), every=every, sampling=SamplingConfig(**sampling)
        )
        path = None if judge == NONE else folders.find_judge(judge)
        return io.NodeOutput(PreviewPlan(preview=preview, scoring=scoring, judge=path))


def _scoring_inputs() -> list[io.Input]:
    """All optional: they came later, and saved workflows have no values for them."""
    return [
        judge_input(can_be_none=True, optional=True),
        io.String.Input(
            "class_prompt",
            default=SCORING.class_prompt,
            optional=True,
            tooltip="For the judge: the class without the rare word, such as 'a photo of a dog', "
            "to see whether it is kept. Empty takes the class prompt of Generate Class Priors.",
        ),
        io.Int.Input(
            "num_class_images",
            default=SCORING.num_class_images,
            min=0,
            max=100,
            optional=True,
            advanced=True,
            tooltip="For the judge: images of the class drawn with each preview. Fewer are faster "
            "and tell less surely which step is best; 0 leaves the class out.",
        ),
        _weight_input("subject_weight", SCORING.subject_weight, 0.01, "the subject is learned"),
        _weight_input("prompt_weight", SCORING.prompt_weight, 0.0, "prompts are followed"),
        _weight_input("prior_weight", SCORING.prior_weight, 0.0, "the class is kept"),
    ]


def _weight_input(name: str, default: float, minimum: float, what: str) -> io.Input:
    return io.Float.Input(
        name,
        default=default,
        min=minimum,
        max=10.0,
        step=0.05,
        round=0.01,
        optional=True,
        advanced=True,
        tooltip=f"What it counts for the best step that {what}, beside the other two weights. 1 is "
        "usual.",
    )
