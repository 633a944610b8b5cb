"""The nodes, in the order of a typical workflow, and the extension that ComfyUI loads."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from ..host_version import complaint_here, package_complaint
from ..trainer.console import PlainRecords, accept_all_characters
from . import photo_routes, run_routes
from .apply_lora import ApplyLora
from .compare_settings import CompareSettings
from .dreambooth_train import DreamBoothTrain
from .extract_lora import ExtractLora
from .generate_class_priors import GenerateClassPriors
from .load_instance_images import LoadInstanceImages
from .models import LoadBaseModel, ModelFromGraph, UseTrainedModel
from .optimizer_settings import OptimizerSettings
from .preview_settings import PreviewSettings
from .sample_with_scheduler import SampleWithScheduler
from .save_checkpoint import SaveCheckpoint
from .score_images import ScoreImages
from .textual_inversion_train import TextualInversionTrain

logger = logging.getLogger(__name__)

NODES: list[type[io.ComfyNode]] = [
    LoadBaseModel,
    ModelFromGraph,
    ApplyLora,
    LoadInstanceImages,
    GenerateClassPriors,
    DreamBoothTrain,
    TextualInversionTrain,
    OptimizerSettings,
    PreviewSettings,
    SampleWithScheduler,
    CompareSettings,
    ScoreImages,
    UseTrainedModel,
    ExtractLora,
    SaveCheckpoint,
]


class DreamBoothExtension(ComfyExtension):
    async def on_load(self) -> None:
        # A message that ComfyUI cannot log ends the thread that runs workflows.
        accept_all_characters()
        logging.getLogger(__name__.rpartition(".nodes")[0]).addHandler(PlainRecords())
        run_routes.add_routes()
        photo_routes.add_routes()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


def comfy_entrypoint() -> ComfyExtension:
    """Raises RuntimeError if ComfyUI or torch is too old; ComfyUI logs the message."""
    if found := complaint_here():
        raise RuntimeError(found)
    if missing := package_complaint():
        logger.warning(missing)  # The nodes are loaded, and each raises it when it runs.
    return DreamBoothExtension()
