"""Extract LoRA: a small file in place of a trained checkpoint."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from comfy_api.latest import io

from ..trainer.conversion import likeness
from ..trainer.conversion.extraction import Extraction, extract_once
from ..trainer.conversion.low_rank import RankRule
from ..trainer.conversion.pairs import Model
from ..trainer.evaluation import encoders
from ..trainer.evaluation.comparison import Candidate
from ..trainer.settings.config import FileDtype, OutputConfig, SamplingConfig
from . import folders, host
from .images import MAX_PREVIEWS, to_arrays
from .running import node_schema, runs_once
from .sockets import ModelSocket, ModelSource
from .widgets import (
    NONE,
    drawing_precision_input,
    judge_input,
    lines,
    prompts_input,
    widget,
)

RULE, ENERGY, RANK = "rule", "energy", "rank"
DEFAULT = RankRule()
SAMPLING = SamplingConfig(steps=25)


class ExtractLora(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return node_schema(
            node_id="DreamBoothExtractLoRA",
            display_name="Extract LoRA",
            description="Extract a LoRA from a trained checkpoint: a small file that changes the "
            "base model into it. Each layer gets the rank that it needs, and the node says how "
            "much of the training is kept.",
            search_aliases=[
                "dreambooth",
                "extract lora",
                "checkpoint to lora",
                "save lora difference",
                "lora svd",
            ],
            is_output_node=True,
            inputs=[*_links(), *_widgets()],
            outputs=_outputs(),
        )

    @classmethod
    @runs_once(photos=to_arrays, prompts="\n".join)
    def execute(
        cls,
        base_source: ModelSource,
        trained_source: ModelSource,
        rule: dict[str, Any] | None = None,
        name: str = "",
        file_dtype: FileDtype = "fp16",
        judge: str = NONE,
        photos: list[np.ndarray] | None = None,
        **drawing: Any,
    ) -> io.NodeOutput:
        output = OutputConfig(folder=folders.loras_folder(), name=name, dtype=file_dtype)
        path = None if judge == NONE else folders.find_judge(judge)
        prompts = lines(drawing.pop("prompts"), "prompts") if path else ()
        with host.trainer_device(unload_now=False) as device:
            found = extract_once(
                Model(base_source.path, base_source.options),
                Model(trained_source.path, trained_source.options),
                _rule(rule or {}), output, device=device, observer=host.ComfyObserver(),
            )  # fmt: skip
            source = replace(
                base_source,
                options=found.options(base_source.options),
                embedding=trained_source.embedding or base_source.embedding,
            )
            texts = [found.describe()]
            if path:
                encoder = encoders.load(path, device)
                models = {
                    likeness.BASE: replace(source, options=base_source.options),
                    likeness.TRAINED: trained_source,
                    likeness.EXTRACTED: source,
                }
                texts.append(_likeness(models, encoder, device, prompts, photos, **drawing))
        return io.NodeOutput(source, _tell(found), "\n".join(texts))


def extract_of_run(base: ModelSource, checkpoint: Path, rank: int) -> str:
    """Extract a LoRA of this rank from the checkpoint of a run that started from `base`, and return
    its name in the menus of LoRA loaders. The node shows how much is kept."""
    output = OutputConfig(folder=folders.loras_folder(), name=checkpoint.stem, dtype="fp16")
    with host.trainer_device() as device:
        found = extract_once(
            Model(base.path, base.options), Model(checkpoint), RankRule(rank=rank), output,
            device=device, observer=host.ComfyObserver(),
        )  # fmt: skip
    return _tell(found)


def _rule(choice: dict[str, Any]) -> RankRule:
    """The rule that the menu and the widget below it describe."""
    chosen = choice.get(RULE)
    if chosen not in (ENERGY, RANK):
        raise ValueError(f"rule must be {ENERGY} or {RANK}, got {chosen!r}.")
    return RankRule(**{chosen: choice[chosen]})


def _likeness(
    models: dict[str, ModelSource],
    encoder: encoders.ImageEncoder,
    device: torch.device,
    prompts: tuple[str, ...],
    photos: list[np.ndarray] | None,
    *,
    precision: Any,
    **sampling: Any,
) -> str:
    candidates = {
        name: Candidate(
            label=name, path=source.path, embedding=source.embedding, options=source.options
        )
        for name, source in models.items()
    }
    names = [field.name for field in fields(SamplingConfig) if field.name in sampling]
    return likeness.measure(
        candidates, prompts, replace(SAMPLING, **{name: sampling[name] for name in names}), encoder,
        device=device, photos=photos or (), number_format=precision, observer=host.ComfyObserver(),
    ).describe()  # fmt: skip


def _tell(found: Extraction) -> str:
    """The name of the file, which the node shows with what is kept."""
    name = folders.lora_name(found.path)
    host.tell(f"{'Found' if found.reused else 'Wrote'} {name}: {found.describe()}")
    return name


def _links() -> list[io.Input]:
    return [
        ModelSocket.Input(
            "base_source",
            tooltip="The model that the training started from, from Load Base Model. If it has "
            "LoRAs, the new one is for use together with them.",
        ),
        ModelSocket.Input(
            "trained_source",
            tooltip="The trained model: the model source or best step of DreamBooth Train, or a "
            "trained checkpoint from Load Base Model.",
        ),
        io.Image.Input(
            "photos",
            optional=True,
            tooltip="Photos of the subject, to score the images of all models: the preview of Load "
            f"Instance Images, which has the first {MAX_PREVIEWS} photos as squares. Not used "
            "without a judge.",
        ),
    ]


def _widgets() -> list[io.Input]:
    energy = widget(io.Float, DEFAULT, "energy", min=0.01, max=1.0, step=0.01, round=0.000001)
    rank = io.Int.Input(
        "rank",
        default=32,
        min=1,
        max=1280,
        optional=True,
        tooltip="Rank of every layer: 16 to 128. More keeps more, and makes a larger file. A "
        "layer's own size limits it.",
    )
    return [
        io.DynamicCombo.Input(
            RULE,
            options=[
                io.DynamicCombo.Option(ENERGY, [energy]),
                io.DynamicCombo.Option(RANK, [rank]),
            ],
            optional=True,
            tooltip="What decides the rank of each layer, and so the size of the file. energy: the "
            "share of its change to keep. rank: the same rank for all.",
        ),
        widget(
            io.String,
            replace(OutputConfig(), name="extracted"),
            "name",
            note="The LoRA is saved in loras/dreambooth.",
        ),
        io.Combo.Input(
            "file_dtype",
            options=["fp16", *(name for name in get_args(FileDtype) if name != "fp16")],
            default="fp16",
            optional=True,
            advanced=True,
            tooltip="Number format of the LoRA. fp16 is half as large as fp32 and loses next to "
            'nothing of the change. "as input" is that of the trained checkpoint.',
        ),
        judge_input(can_be_none=True, optional=True),
        prompts_input(
            "With a judge: one prompt per line. The base model with and without the LoRA and the "
            "trained model draw each of them from the same noise, and the judge compares the "
            "images."
        ),
        widget(io.Int, SAMPLING, "steps", min=1, max=1000, advanced=True),
        widget(io.Float, SAMPLING, "guidance_scale", min=1.0, max=30.0, step=0.1, advanced=True),
        drawing_precision_input(),
    ]


def _outputs() -> list[io.Output]:
    return [
        ModelSocket.Output(
            "extracted_source",
            display_name="model source",
            tooltip="The base model with the LoRA. Connect to Sample with Scheduler or Compare "
            "Settings, or to Save as Checkpoint.",
        ),
        io.String.Output(
            "lora_name",
            display_name="lora name",
            tooltip="The name of the LoRA in the menu of Load LoRA.",
        ),
        io.String.Output(
            "kept",
            display_name="kept change",
            tooltip="How much of the training the LoRA keeps, what it cannot hold and, with a "
            "judge, how alike the images are. Connect to Preview as Text.",
        ),
    ]
