"""The adapters of a LoRA in training: new ones, or those of a file, and the file that they are
written to."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import file_dtype
from ..families.base import ModelFamily
from ..families.lora_file import LayerChange, LoraFile
from ..families.lora_layers import UNET_PART, LoraLayer
from ..settings.config import TrainingConfig
from ..weights import FileTensor
from .adapters import Adapter, RankMasks, attach
from .base import InitialTensors, OutputFile, Part, Trainable
from .new_words import TrainableEmbedding

if TYPE_CHECKING:
    from .lora import LoRA

logger = logging.getLogger(__name__)

DECIDED_BY_START = ("rank", "alpha", "conv_rank", "text_encoder_rank", "dora", "layers")
"""The options that the file has decided if it is trained further."""
START = "start_sha256"
"""In `CheckpointFile.overrides`: the hash of the file that is trained further."""


@dataclass(frozen=True, slots=True)
class Adapters:
    """The adapters of a model's layers."""

    trained: dict[LoraLayer, Adapter]
    frozen: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the file to train further that belong to parts which are not trained."""

    def of(self, part: str) -> dict[LoraLayer, Adapter]:
        """Those of one part of the model."""
        return {layer: adapter for layer, adapter in self.trained.items() if layer.part == part}


def new(options: LoRA, model: ModelFamily, seed: int) -> Adapters:
    """Adapters without any effect yet. Raises ValueError if there is no layer to train."""
    generator = torch.Generator().manual_seed(seed)
    layers, adapters = model.lora_layers(), {}
    for layer in layers:
        if rank := options.rank_of(layer):
            adapters[layer] = Adapter(layer.module, rank, options.factor, dora=options.dora)
            adapters[layer].reset(generator)
    if not adapters:
        raise ValueError(
            f"layers is {options.layers!r}, but no layer to train has a name that contains one of "
            f"these words. Names are such as {layers[0].path!r} and {layers[-1].path!r}."
        )
    return Adapters(adapters)


def continued(options: LoRA, model: ModelFamily) -> Adapters:
    """The adapters of the file to train further. Layers of parts that are not trained are changed
    in the model's weights. Raises ValueError if the file cannot be trained further."""
    assert options.start
    file, adapters = LoraFile(options.start), {}
    frozen: dict[str, Tensor] = {}
    for layer, name in file.changes(model.lora_layers(), model.name).items():
        if layer.part in (UNET_PART, *options.trained_text_encoders):
            adapters[layer] = _adapter(layer, file.change(name), f"'{name}' of '{file.name}'")
        else:
            file.patch(model.source, layer, name)
            frozen |= file.tensors(name)
    if frozen:
        model.read_text_encoders()
    if not adapters:
        raise ValueError(
            f"'{file.name}' changes only text encoders. Switch on train_text_encoder to train it "
            "further."
        )
    # Class images are drawn with what the file has learned.
    model.source.overrides[START] = file.sha256()
    _warn_of_unused(options, file)
    return Adapters(adapters, frozen)


def _adapter(layer: LoraLayer, change: LayerChange, shown: str) -> Adapter:
    is_dora = change.magnitude is not None
    is_by_output = change.magnitude is not None and change.magnitude.shape[0] != 1
    if change.mid is not None or is_by_output:
        kind = "norms by output (DoRA)" if is_by_output else "a Tucker decomposition (lora_mid)"
        raise ValueError(
            f"The layer {shown} has {kind}, which cannot be trained further. Choose another LoRA, "
            "or train a new one on top of it (loras)."
        )
    factor = 1.0 if change.alpha is None else change.alpha / change.rank
    adapter = Adapter(layer.module, change.rank, factor, dora=is_dora)
    adapter.load(change)
    return adapter


def _warn_of_unused(options: LoRA, file: LoraFile) -> None:
    defaults = {each.name: each.default for each in fields(options)}
    unused = [name for name in DECIDED_BY_START if getattr(options, name) != defaults[name]]
    if unused:
        logger.warning(
            "'%s' is trained further with the layers and ranks that it has, so these settings have "
            "no effect: %s.", file.name, ", ".join(unused),
        )  # fmt: skip


class LoraTrainable(Trainable):
    """The adapters of a run, and its embedding if it has one."""

    def __init__(
        self,
        options: LoRA,
        model: ModelFamily,
        config: TrainingConfig,
        adapters: Adapters,
        embeddings: Sequence[TrainableEmbedding],
    ) -> None:
        self.trains_text_encoder = options.encodes_captions_at_each_step
        self._adapters = adapters
        self._embeddings = {embedding.part.name: embedding for embedding in embeddings}
        for layer, adapter in adapters.trained.items():
            attach(layer.module, adapter)
        _mask_ranks(options, model, list(adapters.of(UNET_PART).values()), config.seed)
        parts = (UNET_PART, *options.trained_text_encoders)
        self.parts = [_part(name, options, config, adapters) for name in parts if adapters.of(name)]
        self.files = [_file(options, model, config, adapters, self.parts)]
        self.parts = [*self.parts, *(embedding.part for embedding in embeddings)]
        self.files += [embedding.file for embedding in embeddings]

    def part_tensors(self, part: Part) -> Mapping[str, FileTensor]:
        if part.name in self._embeddings:
            return self._embeddings[part.name].tensors()
        return _trained_tensors(self._adapters.of(part.name))

    def initial_values(self, part: Part) -> Sequence[Tensor | None]:
        """A new adapter changes nothing, whatever its `down` is."""
        free = {a.down for a in self._adapters.of(part.name).values() if not a.up.any()}
        values = zip(part.parameters, super().initial_values(part), strict=True)
        return [None if parameter in free else value for parameter, value in values]

    def after_step(self) -> None:
        for embedding in self._embeddings.values():
            embedding.clamp_lengths()


def _mask_ranks(options: LoRA, model: ModelFamily, adapters: list[Adapter], seed: int) -> None:
    if not options.dropout and options.min_rank is None:
        return
    masks = RankMasks(
        adapters,
        smallest_share=(options.min_rank or options.rank) / options.rank,
        dropout=options.dropout,
        max_time=model.noise.max_time,
        seed=seed,
    )
    model.unet.register_forward_pre_hook(masks)


def _part(name: str, options: LoRA, config: TrainingConfig, adapters: Adapters) -> Part:
    parameters = [p for adapter in adapters.of(name).values() for p in adapter.parameters()]
    learning_rate, stop = config.optimizer.learning_rate, None
    if name != UNET_PART:
        _, rate, stop = options.settings_of(name)
        learning_rate = rate or learning_rate
    return Part(name, parameters, learning_rate, stop)


def _file(
    options: LoRA,
    model: ModelFamily,
    config: TrainingConfig,
    adapters: Adapters,
    parts: Sequence[Part],
) -> OutputFile:
    """The LoRA file. As input, it has the number formats that the checkpoint has for the layers."""
    tensors, dtypes = dict(adapters.frozen), dict[str, torch.dtype]()
    exact = {name for name in tensors if name.endswith((".alpha", ".dora_scale"))}
    for layer, adapter in adapters.trained.items():
        trained = _trained_tensors({layer: adapter})
        dtype = file_dtype(model.source.dtypes[layer.place.key], "as input")
        dtypes |= {name: dtype for name in trained if not name.endswith(".dora_scale")}
        alpha = {f"{layer.name}.alpha": torch.tensor(adapter.scale * adapter.rank)}
        exact |= trained.keys() - dtypes.keys() | alpha.keys()
        tensors |= trained | alpha
    return OutputFile(
        kind="lora",
        original=InitialTensors(tensors, dtypes, exact),
        parts=list(parts),
        output=config.output.in_subfolder(),
        metadata=_metadata(options, model, adapters),
    )


def _trained_tensors(adapters: Mapping[LoraLayer, Adapter]) -> dict[str, Tensor]:
    """The adapters' weights by their names in the file."""
    tensors: dict[str, Tensor] = {}
    for layer, adapter in adapters.items():
        tensors[f"{layer.name}.lora_down.weight"] = adapter.down
        tensors[f"{layer.name}.lora_up.weight"] = adapter.up
        if adapter.magnitude is not None:
            tensors[f"{layer.name}.dora_scale"] = adapter.magnitude
    return tensors


def _metadata(options: LoRA, model: ModelFamily, adapters: Adapters) -> dict[str, str]:
    """As kohya's programs write them, which others show."""
    in_transformers = [a for layer, a in adapters.trained.items() if layer.is_in_transformer]
    others = [a for layer, a in adapters.trained.items() if not layer.is_in_transformer]
    largest = max(in_transformers or others, key=lambda adapter: adapter.rank)
    arguments: dict[str, str] = {}
    if others:
        of_others = max(others, key=lambda adapter: adapter.rank)
        arguments["conv_dim"] = str(of_others.rank)
        arguments["conv_alpha"] = f"{of_others.scale * of_others.rank:g}"
    if any(adapter.magnitude is not None for adapter in adapters.trained.values()):
        arguments["dora_wd"] = "True"
    start = model.source.overrides.get(START)
    return {
        **({f"dreambooth.{START}": start} if start else {}),
        "modelspec.architecture": f"{model.architecture}/lora",
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(largest.rank),
        "ss_network_alpha": f"{largest.scale * largest.rank:g}",
        **({"ss_network_dropout": f"{options.dropout:g}"} if options.dropout else {}),
        **({"ss_network_args": json.dumps(arguments)} if arguments else {}),
    }
