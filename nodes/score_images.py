"""Score Images: compare any images with photos of the subject and with prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
from comfy_api.latest import io, ui

from ..trainer.evaluation import encoders
from ..trainer.evaluation.plots import score_chart
from ..trainer.evaluation.scores import ImageScorer, Scores, table
from . import folders, host
from .images import MAX_PREVIEWS, to_arrays, to_batch
from .running import node_schema, runs_once
from .widgets import judge_input, lines

MAX_BARS = 32
"""Images in the chart. With more, it would be too tall to read."""


class ScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothScoreImages",
            display_name="Score Images",
            description="Score images with CLIP or DINO: how much they look like the subject, how "
            "well they follow their prompts, whether they repeat a photo, and how much they vary.",
            search_aliases=[
                "dreambooth",
                "CLIP score",
                "DINO score",
                "similarity",
                "evaluate images",
                "rate images",
            ],
            is_output_node=True,
            inputs=[
                io.Image.Input(
                    "images",
                    tooltip="The images to score, from any node: ten or more, as the mean of a few "
                    "says little.",
                ),
                io.Image.Input(
                    "photos",
                    tooltip="Photos of the subject: the preview of Load Instance Images, which has "
                    f"the first {MAX_PREVIEWS} photos as squares. Photos that were not trained on "
                    "are a fairer measure.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="What the images should show: one line for all of them, or one line "
                    "for each. Empty: no prompt fidelity.",
                ),
                judge_input(optional=True),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @runs_once(images=to_arrays, photos=to_arrays, prompt="\n".join)
    def execute(
        cls,
        images: list[np.ndarray],
        photos: list[np.ndarray],
        prompt: str,
        judge: str | None = None,
    ) -> io.NodeOutput:
        if judge is None:
            raise ValueError("judge is not set. Choose the CLIP or DINO that scores the images.")
        prompts = lines(prompt, "prompt") if prompt.strip() else ()
        path = folders.find_judge(judge)
        with host.trainer_device() as device:
            image_scorer = ImageScorer(encoders.load(path, device), photos, prompts)
            scores = image_scorer.score(images)
        rows = scores.rows([f"image {number}" for number in range(1, len(images) + 1)])
        chart = to_batch([score_chart([*rows[:-1][:MAX_BARS], rows[-1]])])
        return io.NodeOutput(
            *_means(scores, judge),
            chart,
            table(rows),
            ui=ui.PreviewImage(chart, cls=cls),
        )


def _means(scores: Scores, judge: str) -> list[Any]:
    """The mean scores in the order of the outputs. For a missing one, a value that leaves out the
    nodes connected to it."""
    missing = {
        "prompt fidelity": "Score Images has no prompt fidelity: prompt is empty, or the judge "
        f"{judge} has no text encoder. Write what the images show, or choose a CLIP with one.",
        "diversity": "Score Images has no diversity: it needs two images of one prompt. Connect "
        "more of them.",
    }
    found = scores.means
    names = ("subject fidelity", "prompt fidelity", "memorisation", "diversity")
    return [found[name] if name in found else host.no_result(missing[name]) for name in names]


def _outputs() -> list[io.Output]:
    return [
        io.Float.Output(
            "subject_fidelity",
            display_name="subject fidelity",
            tooltip="How much the images look like the subject: their mean likeness to all photos, "
            "-1 to 1.",
        ),
        io.Float.Output(
            "prompt_fidelity",
            display_name="prompt fidelity",
            tooltip="How well the images follow their prompts, -1 to 1. Needs a prompt and a judge "
            "with a text encoder.",
        ),
        io.Float.Output(
            "memorisation",
            display_name="memorisation",
            tooltip="Mean likeness of each image to its nearest photo, -1 to 1. Near 1, images "
            "repeat the photos.",
        ),
        io.Float.Output(
            "diversity",
            display_name="diversity",
            tooltip="How much images of the same prompt differ, 0 to 2. Near 0 they are all alike. "
            "Needs at least 2 images of one prompt.",
        ),
        io.Image.Output(
            "chart",
            display_name="score chart",
            tooltip=f"The scores of the first {MAX_BARS} images and the mean of all, as bars. The "
            "node shows it too. Connect to Preview Image or Save Image.",
        ),
        io.String.Output(
            "scores",
            display_name="scores",
            tooltip="The scores as a table: a line per image, and the mean. Connect to Preview as "
            "Text.",
        ),
    ]
