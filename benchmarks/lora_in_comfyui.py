"""Load a LoRA with random weights for all layers of a checkpoint into ComfyUI, and compare the
weights that ComfyUI makes of it with ours.

    COMFYUI_PYTHON -m benchmarks.lora_in_comfyui CHECKPOINT --comfyui COMFYUI

Prints one line of JSON: the number of layers, the largest difference relative to the largest number
of a weight, by strength, and what ComfyUI logged about names that it did not load. ComfyUI's Python
must have diffusers. Memory: that of the checkpoint in ComfyUI."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainer import families
from trainer.families.clip_skip import LAST_LAYER
from trainer.families.files import CheckpointFile
from trainer.families.layouts import UNET
from trainer.families.lora_layers import UNET_PART, LoraLayer
from trainer.settings.config import ModelOptions

STRENGTHS = (0.0, 0.5, 1.0, -1.0)
RANK, ALPHA = 4, 2.0


def layers_of(path: Path) -> list[LoraLayer]:
    """The layers of a checkpoint's model. Reads no weights."""
    source = CheckpointFile(path)
    family = families.family_of(source)
    networks = family.plan_networks(source, family.read_constants(source), LAST_LAYER)
    return family.lora_layers_of(networks)


def random_lora(
    layers: list[LoraLayer], source: CheckpointFile, *, dora: bool
) -> dict[str, Tensor]:
    """The tensors of a LoRA in fp16 that changes each weight by about a tenth; with DoRA the norms
    too."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in layers:
        weight = layer.place.read(source.tensor(layer.place.key), layer.shape).float()
        size = (0.1 * weight.std() / ALPHA**0.5) ** 0.5
        num_outputs, *inputs = layer.shape
        down = torch.randn(RANK, *inputs, generator=generator) * size
        up = torch.randn(num_outputs, RANK, *[1] * (len(inputs) - 1), generator=generator) * size
        tensors[f"{layer.name}.lora_down.weight"] = down.half()
        tensors[f"{layer.name}.lora_up.weight"] = up.half()
        tensors[f"{layer.name}.alpha"] = torch.tensor(ALPHA)
        if dora:
            norms = weight.transpose(0, 1).flatten(1).norm(dim=1)
            norms *= 1 + 0.1 * torch.rand(norms.shape, generator=generator)
            tensors[f"{layer.name}.dora_scale"] = norms.view(1, -1, *[1] * (len(inputs) - 1))
    return tensors


def in_comfyui(layer: LoraLayer) -> str:
    """The name of a layer's weight in ComfyUI's model or text encoders."""
    if layer.part == UNET_PART:
        return f"diffusion_model.{layer.place.key.removeprefix(UNET)}"
    path = f"text_model.{layer.path.removeprefix('text_model.')}.weight"
    return f"transformer.{path}"


class Messages(logging.Handler):
    """Keeps what ComfyUI logs about names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "loaded" in record.getMessage().lower():
            self.found.append(record.getMessage())


def patched(patcher: Any, key: str) -> Tensor:
    weight = patcher.patch_weight_to_device(key, torch.device("cpu"), return_weight=True)
    return weight.detach().float()


def compare(path: Path, *, dora: bool) -> dict[str, Any]:
    """Call this with ComfyUI in `sys.path`."""
    import comfy.sd
    import comfy.utils

    layers, messages = layers_of(path), Messages()
    logging.getLogger().addHandler(messages)
    model, clip = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=False)[:2]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "random.safetensors"
        save_file(random_lora(layers, CheckpointFile(path), dora=dora), file)
        lora = comfy.utils.load_torch_file(str(file))
        worst = {}
        messages.found.clear()
        for strength in STRENGTHS:
            patchers = comfy.sd.load_lora_for_models(model, clip, lora, strength, strength)
            options = ModelOptions(loras=(file,), lora_strengths=(strength,))
            source = families.open_model(path, options)
            worst[f"{strength:g}"] = max(_differences(patchers, layers, source))
    return {"layers": len(layers), "differences": worst, "messages": messages.found}


def _differences(patchers: Any, layers: list[LoraLayer], source: CheckpointFile) -> Iterator[float]:
    model, clip = patchers[0], patchers[1].patcher
    found = {**dict.fromkeys(model.patches, model), **dict.fromkeys(clip.patches, clip)}
    for layer in layers:
        (key,) = [key for key in found if _is_of(key, layer)]
        ours = layer.place.read(source.tensor(layer.place.key), layer.shape).float()
        theirs = patched(found.pop(key), key).view(ours.shape)
        yield ((ours - theirs).abs().max() / ours.abs().max()).item()
    assert not found, f"ComfyUI also changes {[*found][:3]}"


def _is_of(key: str, layer: LoraLayer) -> bool:
    """Whether this is ComfyUI's name of the layer's weight. Its names of text encoders begin with
    clip_l, clip_g or clip_h."""
    if layer.part == UNET_PART:
        return key == in_comfyui(layer)
    is_second = layer.part != "text_encoder"
    return key.endswith(f".{in_comfyui(layer)}") and key.startswith("clip_g.") == is_second


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--comfyui", type=Path, required=True)
    parser.add_argument("--dora", action="store_true")
    arguments = parser.parse_args()
    sys.path.insert(0, str(arguments.comfyui))
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    print(json.dumps(compare(arguments.checkpoint, dora=arguments.dora)))  # noqa: T201


if __name__ == "__main__":
    main()
