"""Writes a model as it is used, with its LoRAs and its VAE, as a new checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import file_dtype, prepare_folder, require_inside, write_new
from ..families import family_of, open_model
from ..families.clip_skip import CLIP_SKIP_KEY, OTHERS_KEY, choose_clip_skip, files_of
from ..families.constants import without_prediction
from ..families.files import LORA, CheckpointFile
from ..families.prediction import V_ZERO_SNR, ZERO_SNR_FLAG
from ..observer import Observer
from ..precision import dtype_name
from ..settings.config import OutputConfig
from ..storage.tensor_file import TensorToWrite
from . import written
from .pairs import Model

logger = logging.getLogger(__name__)

KEY = "dreambooth.merge"
"""The metadata key of what a checkpoint was put together from."""
TRIGGER_KEY = "modelspec.trigger_phrase"


@dataclass(frozen=True, slots=True)
class Merge:
    """A checkpoint that was put together."""

    path: Path
    reused: bool = False
    """Whether the file was found rather than written."""


def merge_once(model: Model, output: OutputConfig, observer: Observer | None = None) -> Merge:
    """Write a checkpoint with the weights that the options of the model say, tensor by tensor. The
    folder's checkpoint that was put together from the same files in the same way is returned
    instead, whatever its name, if there is one.

    Weights that no LoRA changes are those of the file, bit for bit; `output.dtype` is the number
    format of the others. Raises FileNotFoundError or ValueError if a file cannot be used.
    """
    source = open_model(model.path, model.options)
    family = family_of(source)
    family.read_constants(source, model.options.prediction_type)  # adds the tensors that say it
    clip_skip = choose_clip_skip(
        model.options.clip_skip, files_of(model.path, None, model.options.loras),
        family.usual_clip_skip,
    )  # fmt: skip
    require_inside(output)
    output = output.in_subfolder()
    prepare_folder(output.folder)
    facts = {"base": source.sha256(), **source.overrides, "dtype": output.dtype,
             "clip_skip": clip_skip}  # fmt: skip
    if found := written.find(output.folder, KEY, facts):
        logger.info("Reusing the checkpoint that was written before: %s", found[0])
        return Merge(found[0], reused=True)
    for note in source.notes:
        logger.info("%s", note)
    metadata = {
        **_metadata(model, source, output),
        CLIP_SKIP_KEY: str(clip_skip),
        OTHERS_KEY: str(clip_skip),
        **written.as_metadata(KEY, facts, _parts(model)),
    }
    tensors = _tensors(source, output.dtype, observer or Observer())
    return Merge(write_new(output.folder, output.name, tensors, metadata))


def _tensors(source: CheckpointFile, dtype: str, observer: Observer) -> Mapping[str, TensorToWrite]:
    total = len(source.shapes)
    done = iter(range(1, total + 1))

    def to_write(key: str) -> TensorToWrite:
        is_changed = key in source.patched
        found = file_dtype(source.dtypes[key], dtype) if is_changed else source.dtypes[key]

        def compute() -> Tensor:
            tensor = source.tensor(key).to(found)
            if is_changed:
                _require_finite(source, key, tensor)
            observer.on_progress("Writing", next(done), total)
            return tensor

        return TensorToWrite(source.shapes[key], found, compute)

    return {key: to_write(key) for key in source.shapes}


def _require_finite(source: CheckpointFile, key: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(
            f"With these LoRAs, the weight '{key}' of '{source.name}' becomes infinite or not a "
            f"number (NaN) in {dtype_name(tensor.dtype)}. Lower their strengths, choose the number "
            "format fp32, or check the files."
        )


def _parts(model: Model) -> dict[str, Any]:
    """The names of the files, for people."""
    vae = model.options.vae
    return {
        "base": model.path.name,
        "loras": [
            {"name": path.name, "strength": strength}
            for path, strength in model.options.loras_with_strengths
        ],
        **({"vae": vae.name} if vae else {}),
    }


def _metadata(model: Model, source: CheckpointFile, output: OutputConfig) -> dict[str, str]:
    """The base model's, and what was put into it."""
    options, found = model.options, dict(source.metadata)
    found.pop("modelspec.hash_sha256", None)
    if options.prediction_type != "auto":
        found = without_prediction(found)
        is_epsilon = options.prediction_type == "epsilon"
        found["modelspec.prediction_type"] = "epsilon" if is_epsilon else "v"
        if options.prediction_type == V_ZERO_SNR:
            found[ZERO_SNR_FLAG] = str(True)
    phrases = [CheckpointFile(path, LORA).metadata.get(TRIGGER_KEY) for path in options.loras]
    if phrase := ", ".join(filter(None, [found.get(TRIGGER_KEY), *phrases])):
        found[TRIGGER_KEY] = phrase
    sources = [path.name for path in (model.path, *options.loras)]
    ours = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": output.name,
        "modelspec.merged_from": ", ".join(sources),
        "ss_output_name": output.name,
        "ss_sd_model_name": model.path.name,
        "ss_new_sd_model_hash": source.sha256(),
        "dreambooth.base_sha256": source.sha256(),
        "dreambooth.loras": source.overrides.get("loras"),
        "ss_vae_name": options.vae.name if options.vae else None,
        "ss_new_vae_hash": source.overrides.get("vae_sha256"),
    }
    return {**found, **{key: text for key, text in ours.items() if text is not None}}
