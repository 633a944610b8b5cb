"""What turns pictures and prompts into embeddings for `metrics.py`: CLIP or DINO, from the user's
own files and never from the network. The toy world's own judge is in `toy/judge.py`.

Shapes: N pictures or prompts, D width, S the encoder's picture side in pixels, L tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..families.files import CheckpointFile
from ..families.layouts import TextLayout, count
from ..families.networks import CLIP_VOCABULARY, Network
from ..families.tokenizer import ClipTokenizer
from ..storage import json_files
from .toy_encoder import ANSWERS_KEY, ToyEncoder

BATCH = 16
"""Pictures or prompts embedded at once; they do not depend on it."""
CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of red, green and blue that CLIP was trained with, from its own code."""
IMAGENET_COLORS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""DINO's."""
CLIP_KINDS = ("clip", "clip_vision_model")
DINO_KINDS = ("vit", "dinov2", "dinov2_with_registers")
"""What `model_type` of a folder's config.json is, as transformers names them."""
SIDE = 224
"""Pixels that DINO takes where it could take any number."""
WIDE_HEADS = {1280: 16, 1664: 16}
"""Heads of the attention in CLIP's vision networks H and bigG, by their width; in the smaller ones
and in all its text networks each head is 64 wide."""


class ImageEncoder(Protocol):
    """Sees pictures, and reads prompts if it can."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """[N, D] of images [H, W, 3] uint8, each of any size, on the CPU in fp32."""

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        """[N, D], to be compared with images by their direction; None from one that cannot read."""


def load(path: Path, device: torch.device) -> ImageEncoder:
    """CLIP or DINO from a folder as transformers saves it (config.json and .safetensors), or CLIP
    from one .safetensors file, as in ComfyUI's clip_vision folder.

    FileNotFoundError if there is nothing; ValueError for anything else, and for damaged files.
    """
    if not path.is_dir():
        source = CheckpointFile(path)
        if ANSWERS_KEY in source.metadata:
            return ToyEncoder(source)
        return ClipEncoder(_clip_of_file(source), device)
    kind = json_files.read(path / "config.json").get("model_type")
    if kind in CLIP_KINDS:
        return ClipEncoder(_of_folder(path, kind), device)
    if kind in DINO_KINDS:
        return DinoEncoder(_of_folder(path, kind), device)
    found = f"a model of the kind {kind!r}" if kind else "no config.json that can be read"
    raise ValueError(
        f"{path} holds {found}, and a judge is one of {', '.join(CLIP_KINDS + DINO_KINDS)}. Choose "
        "a folder with CLIP or DINO as transformers saves them, or a .safetensors file of CLIP."
    )


class ClipEncoder:
    """CLIP's two projections (Radford et al., arXiv 2103.00020), which lie in one space; of a
    vision network alone, only that of pictures."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model`: transformers' CLIPModel or CLIPVisionModelWithProjection."""
        self._model, self._device = model, device
        self._side = model.vision_model.embeddings.image_size
        self._tokenizer = None
        if hasattr(model, "text_model"):
            positions = model.text_model.embeddings.position_embedding.num_embeddings
            self._tokenizer = ClipTokenizer(positions)

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = [to_pixels(image, self._side, self._side, CLIP_COLORS) for image in images]
        return _in_batches(self._model, torch.stack(pixels), self._device, self._see)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        if self._tokenizer is None:
            return None
        ids = self._tokenizer.encode(list(prompts))
        return _in_batches(self._model, ids, self._device, self._read)

    def _see(self, pixels: Tensor) -> Tensor:
        seen: Tensor = self._model.vision_model(pixel_values=pixels).pooler_output
        return self._model.visual_projection(seen)

    def _read(self, ids: Tensor) -> Tensor:
        read: Tensor = self._model.text_model(input_ids=ids).pooler_output
        return self._model.text_projection(read)


class DinoEncoder:
    """DINO's class token after the last layer (Caron et al., arXiv 2104.14294), or DINOv2's. It
    tells members of a class apart, where CLIP sees the class."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model`: transformers' ViTModel, Dinov2Model or Dinov2WithRegistersModel."""
        self._model, self._device = model, device
        side = model.config.image_size
        # DINOv2 was finished with larger pictures and is used with these, as its authors do.
        self._side = side if model.config.model_type == "vit" else min(side, SIDE)

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        # Its authors cut 224 pixels out of 256.
        shorter = self._side * 8 // 7
        pixels = [to_pixels(image, shorter, self._side, IMAGENET_COLORS) for image in images]
        return _in_batches(self._model, torch.stack(pixels), self._device, self._see)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        return None

    def _see(self, pixels: Tensor) -> Tensor:
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]


def to_pixels(
    image: np.ndarray, shorter: int, side: int, colors: tuple[Sequence[float], Sequence[float]]
) -> Tensor:
    """[3, S, S] of an image [H, W, 3] uint8: its shorter side resized to so many pixels, bicubic as
    CLIP and DINO do it, then the middle cut out, then the colours in deviations from their mean."""
    picture = Image.fromarray(image)
    width, height = (pixels * shorter // min(picture.size) for pixels in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in colors)
    return (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - mean) / deviation


@torch.no_grad()
def _in_batches(
    model: Any, inputs: Tensor, device: torch.device, embed: Callable[[Tensor], Tensor]
) -> Tensor:
    """The model is on the device only meanwhile: in between, others need the memory there."""
    model.to(device)
    try:
        return torch.cat(
            [embed(batch.to(device)).float().cpu() for batch in torch.split(inputs, BATCH)]
        )
    finally:
        model.to("cpu")


# ------------------------------------------------------------------- loading


def _of_folder(folder: Path, kind: str) -> Any:
    # Imported here: ComfyUI's start-up should not pay for it.
    from transformers import AutoModel, CLIPModel, CLIPVisionModelWithProjection

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(
            f"{folder} holds no .safetensors file, and a judge is read from no other. Download the "
            "model's .safetensors version."
        )
    for file in files:
        CheckpointFile(file)  # says more about a damaged one than transformers
    classes = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
    # DINO has none of the pooler that transformers gives its kind.
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    try:
        with torch.random.fork_rng(devices=[]):  # what is missing would be drawn at random
            model, report = classes.get(kind, AutoModel).from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True,
                **options,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} cannot be read as a model of the kind {kind!r} ({_line(error)}). Download "
            "it again, or choose another."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} lacks the weight '{missing[0]}', which its config.json calls for. The model "
            "is incomplete: download it again, or choose another."
        )
    return model.float().requires_grad_(False).eval()


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _clip_of_file(source: CheckpointFile) -> Any:
    """CLIPModel of a file with both networks, CLIPVisionModelWithProjection of one with vision
    alone."""
    # Imported here: ComfyUI's start-up should not pay for it.
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    if not any(key.startswith("vision_model.") for key in source.shapes):
        raise ValueError(
            f"'{source.path.name}' has no weights named 'vision_model.…', so it is no CLIP that a "
            "judge can be. Choose a file as in ComfyUI's clip_vision folder, in the layout of "
            "transformers."
        )
    vision = _vision_config(source)
    can_read = "text_projection.weight" in source.shapes
    text = _text_config(source, vision["hidden_act"]) if can_read else {}
    config = CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=vision["projection_dim"]
    )
    network = Network(
        lambda: (
            CLIPModel(config) if can_read else CLIPVisionModelWithProjection(config.vision_config)
        ),
        lambda names: {name: name for name in names},
    )
    network.require_tensors(source)
    network.read_tensors(source, torch.device("cpu"))
    return network.module


def _vision_config(source: CheckpointFile) -> dict[str, Any]:
    """What shapes tell; and the activation, which is OpenAI's for the networks that it published
    (widths 768 and 1024) and the usual one for OpenCLIP's larger ones."""
    embeddings, layers = "vision_model.embeddings.", "vision_model.encoder.layers."
    width, _, patch, _ = source.shape(f"{embeddings}patch_embedding.weight", 4)
    positions = source.shape(f"{embeddings}position_embedding.weight", 2)[0]
    return {
        "hidden_size": width,
        "intermediate_size": source.shape(f"{layers}0.mlp.fc1.weight", 2)[0],
        "projection_dim": source.shape("visual_projection.weight", 2)[0],
        "num_hidden_layers": count(source.shapes, layers),
        "num_attention_heads": _num_heads(source, width),
        "patch_size": patch,
        "image_size": patch * round((positions - 1) ** 0.5),  # a square, and the class token
        "hidden_act": "gelu" if width in WIDE_HEADS else "quick_gelu",
    }


def _text_config(source: CheckpointFile, activation: str) -> dict[str, Any]:
    layout = TextLayout.read(source, "text_model.")
    if layout.vocabulary != CLIP_VOCABULARY:
        raise ValueError(
            f"The text encoder of '{source.path.name}' knows {layout.vocabulary} tokens, and "
            f"CLIP's vocabulary has {CLIP_VOCABULARY}. Choose a CLIP with its own vocabulary."
        )
    return {
        "vocab_size": layout.vocabulary,
        "hidden_size": layout.width,
        "intermediate_size": layout.inner_width,
        "projection_dim": source.shape("text_projection.weight", 2)[0],
        "num_hidden_layers": layout.num_layers,
        "num_attention_heads": _num_heads(source, layout.width, is_text=True),
        "max_position_embeddings": layout.positions,
        "hidden_act": activation,
    }


def _num_heads(source: CheckpointFile, width: int, *, is_text: bool = False) -> int:
    if width in WIDE_HEADS and not is_text:
        return WIDE_HEADS[width]
    if width % 64:
        raise ValueError(
            f"A network of '{source.path.name}' is {width} wide, which no CLIP is that one file "
            "could describe. Choose a folder with config.json instead."
        )
    return width // 64
