"""Draws a LoRA out of a trained checkpoint: the best changes of low rank in place of what training
changed of each layer."""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import file_dtype, prepare_folder, require_inside, write_new
from ..families.constants import CONSTANTS_KEY
from ..families.lora_file import LayerChange
from ..families.lora_layers import LoraLayer
from ..observer import Observer
from ..settings.config import ModelOptions, OutputConfig
from ..storage.tensor_file import TensorToWrite
from . import written
from .low_rank import RankRule, approximate
from .pairs import VAE, Change, Model, ModelPair

logger = logging.getLogger(__name__)

KEY = "dreambooth.extraction"
"""The metadata key of what a LoRA was extracted from, and how much of it is kept."""
OF_CHECKPOINTS = (CONSTANTS_KEY, "modelspec.hash_sha256", "dreambooth.merge", "dreambooth.loras")
"""Metadata of the trained checkpoint that say nothing of the LoRA."""
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True, slots=True)
class Extraction:
    """An extracted LoRA. Shares are those of the sum of squared changes of the weights."""

    path: Path
    kept: float
    """The share that the file keeps of what changed in the layers that it holds."""
    kept_of_all: float
    """The same of all that changed in U-Net and text encoders."""
    left_out: Mapping[str, float]
    """The share of all of that which a LoRA cannot hold, by the kind of weight."""
    ranks: tuple[int, ...]
    """Of the layers that it holds, in ascending order."""
    has_other_vae: bool
    """Whether the VAEs differ too, which is part of no share."""
    reused: bool = False
    """Whether the file was found rather than written."""

    def options(self, base: ModelOptions) -> ModelOptions:
        """How to read the base model so that it has the LoRA."""
        strengths = [strength for _, strength in base.loras_with_strengths]
        return dataclasses.replace(
            base, loras=(*base.loras, self.path), lora_strengths=(*strengths, 1.0)
        )

    def describe(self) -> str:
        """For users."""
        smallest, largest, total = self.ranks[0], self.ranks[-1], len(self.ranks)
        ranks = f"rank {largest}" if smallest == largest else f"ranks {smallest} to {largest}"
        text = (
            f"{total} layers of {ranks} keep {_percent(self.kept)} of what training changed in "
            f"these layers, and {_percent(self.kept_of_all)} of all that it changed."
        )
        if self.left_out:
            kinds = ", ".join(
                f"{kind} ({_percent(share)} of the change)" for kind, share in self.left_out.items()
            )
            text += f" A LoRA cannot hold {kinds}."
        if self.has_other_vae:
            text += (
                " The VAEs of the two checkpoints differ as well, which a LoRA cannot hold: use "
                "the trained checkpoint's VAE with it."
            )
        return text


@dataclass
class _Contents:
    """What is gathered of the file, layer by layer."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    ranks: list[int] = field(default_factory=list)
    changed: float = 0.0
    """The sum of squared changes of the layers that a LoRA can hold."""
    lost: float = 0.0
    """What the file loses of it."""
    left_out: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """The sum of squared changes of other weights, by kind."""

    def add(self, layer: LoraLayer, change: Change, rule: RankRule, dtype: torch.dtype) -> None:
        down, up = (part.to(dtype) for part in approximate(change.difference, rule))
        rank = len(down)
        stored = LayerChange(down, up, alpha=rank).difference()
        self.changed += change.squares
        self.lost += float((change.difference - stored.double()).square().sum())
        self.ranks.append(rank)
        self.tensors |= {
            f"{layer.name}.lora_down.weight": down.cpu().contiguous(),
            f"{layer.name}.lora_up.weight": up.cpu().contiguous(),
            f"{layer.name}.alpha": torch.tensor(float(rank)),
        }

    def result(self) -> dict[str, Any]:
        """The fields of `Extraction` but for its path, as JSON values."""
        left_out = {kind: squares for kind, squares in self.left_out.items() if kind != VAE}
        total = self.changed + sum(left_out.values())
        return {
            "kept": 1 - self.lost / self.changed,
            "kept_of_all": 1 - (self.lost + sum(left_out.values())) / total,
            "left_out": {kind: squares / total for kind, squares in left_out.items()},
            "ranks": sorted(self.ranks),
            "has_other_vae": VAE in self.left_out,
        }


def extract(
    base: Model,
    trained: Model,
    rule: RankRule,
    output: OutputConfig,
    *,
    device: torch.device = CPU,
    observer: Observer | None = None,
) -> Extraction:
    """Write a new LoRA that changes the base model into the trained one, as far as the rule allows.
    `output` says where, and in which number format. Only one weight of both models is in memory at
    a time, and the LoRA.

    Raises FileNotFoundError or ValueError if a file cannot be used, if the trained model cannot
    come from the base model, or if there is nothing to extract.
    """
    return _extract(ModelPair(base, trained), rule, output, device, observer or Observer())


def extract_once(
    base: Model,
    trained: Model,
    rule: RankRule,
    output: OutputConfig,
    *,
    device: torch.device = CPU,
    observer: Observer | None = None,
) -> Extraction:
    """The same, unless the folder has a LoRA that was extracted from the same files in the same
    way, which is returned then, whatever its name."""
    pair = ModelPair(base, trained)
    found = written.find(_checked(output).folder, KEY, _facts(pair, rule, output))
    if found:
        path, result = found
        logger.info("Reusing the LoRA that was extracted before: %s", path)
        return dataclasses.replace(_extraction(path, result), reused=True)
    return _extract(pair, rule, output, device, observer or Observer())


def _extract(
    pair: ModelPair, rule: RankRule, output: OutputConfig, device: torch.device, observer: Observer
) -> Extraction:
    output, contents = _checked(output), _Contents()
    observer.on_load(pair.trained.source.path)
    # Apple GPUs have no float64.
    for change in pair.changes(CPU if device.type == "mps" else device, observer):
        if change.layer is None:
            contents.left_out[change.kind] += change.squares
        else:
            contents.add(change.layer, change, rule, _dtype(pair, change.layer, output))
    _require_change(pair, contents)
    result = contents.result()
    tensors = {name: TensorToWrite.of(tensor) for name, tensor in contents.tensors.items()}
    metadata = {
        **_metadata(pair, contents, output),
        **written.as_metadata(KEY, _facts(pair, rule, output), result),
    }
    return _extraction(write_new(output.folder, output.name, tensors, metadata), result)


def _checked(output: OutputConfig) -> OutputConfig:
    """With the subfolders of the name in the folder, which exists and is writable."""
    require_inside(output)
    output = output.in_subfolder()
    prepare_folder(output.folder)
    return output


def _extraction(path: Path, result: Mapping[str, Any]) -> Extraction:
    return Extraction(**{**result, "path": path, "ranks": tuple(result["ranks"])})


def _dtype(pair: ModelPair, layer: LoraLayer, output: OutputConfig) -> torch.dtype:
    """ "as input" is the number format that the layer has in the trained checkpoint."""
    key = pair.trained.networks[layer.part].places[f"{layer.path}.weight"].key
    return file_dtype(pair.trained.source.dtypes[key], output.dtype)


def _require_change(pair: ModelPair, contents: _Contents) -> None:
    base, trained = pair.base.source, pair.trained.source
    if contents.ranks:
        return
    if contents.left_out:
        raise ValueError(
            f"'{trained.name}' differs from '{base.name}' only in {', '.join(contents.left_out)}, "
            "which a LoRA cannot hold. Use the trained checkpoint itself."
        )
    raise ValueError(
        f"All weights of '{trained.name}' equal those of '{base.name}', so there is nothing to "
        "extract. Choose a trained checkpoint, and the base model that it was trained from."
    )


def _facts(pair: ModelPair, rule: RankRule, output: OutputConfig) -> dict[str, Any]:
    """What decides the file's contents."""
    models = {"base": pair.base.source, "trained": pair.trained.source}
    return {
        **{
            name: {"sha256": source.sha256(), **source.overrides} for name, source in models.items()
        },
        "rule": str(rule),
        "dtype": output.dtype,
    }


def _metadata(pair: ModelPair, contents: _Contents, output: OutputConfig) -> dict[str, str]:
    """The trained checkpoint's, which says how it was trained, and what the LoRA is."""
    base, trained = pair.base, pair.trained
    kept = {k: v for k, v in trained.source.metadata.items() if k not in OF_CHECKPOINTS}
    largest = str(max(contents.ranks))
    resolution = f"{base.constants.resolution}x{base.constants.resolution}"
    loras = base.source.overrides.get("loras")
    return {
        "modelspec.title": output.name,
        "modelspec.resolution": resolution,
        "modelspec.description": f"LoRA extracted from {trained.source.name}",
        **kept,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{base.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "ss_output_name": output.name,
        "ss_sd_model_name": base.source.name,
        "ss_new_sd_model_hash": base.source.sha256(),
        "ss_base_model_version": base.family.base_version,
        "ss_network_module": "networks.lora",
        "ss_network_dim": largest,
        "ss_network_alpha": largest,
        "dreambooth.base_sha256": base.source.sha256(),
        "dreambooth.trained_sha256": trained.source.sha256(),
        **({"dreambooth.loras": loras} if loras else {}),
    }


def _percent(share: float) -> str:
    """Rounded, but never to all or nothing of what is only nearly so."""
    text = f"{100 * share:.1f} %"
    if text == "100.0 %" and share < 1:
        return "more than 99.9 %"
    return "less than 0.1 %" if text == "0.0 %" and share > 0 else text
