"""Encoders that turn images and prompts into embeddings for `metrics.py`: CLIP and DINO, loaded
from the user's files and never from the network, and the toy world's own.

Shapes: N images or prompts, D embedding width, S the encoder's input size in pixels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..families.files import CheckpointFile
from ..families.key_maps import Place
from ..families.layouts import TextLayout, count
from ..families.networks import CLIP_VOCABULARY, Network
from ..families.tokenizer import ClipTokenizer
from ..storage import json_files
from ..storage.listing import matching
from .toy_encoder import ANSWERS_KEY, ToyEncoder

logger = logging.getLogger(__name__)

BATCH = 16
"""Images or prompts embedded at once. Affects memory and speed only."""
CLIP_COLORS = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of red, green and blue that CLIP normalises its input with."""
IMAGENET_COLORS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""The same for DINO."""
CLIP_TYPES = ("clip", "clip_vision_model")
DINO_TYPES = ("vit", "dinov2", "dinov2_with_registers")
"""Supported values of `model_type` in a folder's config.json."""
DINOV2_SIZE = 224
"""Input size in pixels for DINOv2, which accepts others too."""
WIDE_HEADS = {1280: 16, 1664: 16}
"""Attention heads of the vision networks of CLIP H and bigG, by width. Heads of the smaller vision
networks and of all text networks are 64 wide."""


class ImageEncoder(Protocol):
    """Embeds images, and prompts if it has a text encoder."""

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """[N, D] in fp32 on the CPU, from images [H, W, 3] uint8 of any sizes."""

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        """[N, D], comparable with images by cosine; None if there is no text encoder."""


def load(path: Path, device: torch.device) -> ImageEncoder:
    """Load CLIP or DINO from a folder in the layout of transformers (config.json and .safetensors),
    or CLIP or the toy's encoder from one .safetensors file.

    Raises FileNotFoundError if the path does not exist, and ValueError if it is not supported or
    damaged.
    """
    if not path.is_dir():
        source = CheckpointFile(path)
        if ANSWERS_KEY in source.metadata:
            return ToyEncoder(source)
        return ClipEncoder(_load_clip_file(source), device)
    model_type = json_files.read(path / "config.json").get("model_type")
    if model_type in CLIP_TYPES:
        return ClipEncoder(_load_folder(path, model_type), device)
    if model_type in DINO_TYPES:
        return DinoEncoder(_load_folder(path, model_type), device)
    found = f"a model of type {model_type!r}" if model_type else "no readable config.json"
    raise ValueError(
        f"{path} contains {found}, which cannot score images. Choose a folder with CLIP or DINO in "
        f"the layout of transformers ({', '.join(CLIP_TYPES + DINO_TYPES)}), or a .safetensors "
        "file of CLIP."
    )


class ClipEncoder:
    """CLIP (Radford et al., arXiv 2103.00020), which embeds images and prompts in one space. With a
    vision network alone, it embeds only images."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model`: transformers' CLIPModel or CLIPVisionModelWithProjection."""
        self._model, self._device = model, device
        self._size = model.vision_model.embeddings.image_size
        self._tokenizer = None
        if hasattr(model, "text_model"):
            positions = model.text_model.embeddings.position_embedding.num_embeddings
            self._tokenizer = ClipTokenizer(positions)

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        pixels = [to_pixels(image, self._size, self._size, CLIP_COLORS) for image in images]
        return _in_batches(self._model, torch.stack(pixels), self._device, self._encode_images)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        if self._tokenizer is None:
            return None
        for prompt in prompts:
            if cut := self._tokenizer.newly_cut_text(prompt):
                logger.warning("For scoring, CLIP cannot read all of the prompt %r. Its end is "
                               "ignored: %r. Shorten the prompt.", prompt, cut)  # fmt: skip
        token_ids = self._tokenizer.encode(list(prompts))
        return _in_batches(self._model, token_ids, self._device, self._encode_text)

    def _encode_images(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self._model.vision_model(pixel_values=pixels).pooler_output
        return self._model.visual_projection(pooled)

    def _encode_text(self, token_ids: Tensor) -> Tensor:
        pooled: Tensor = self._model.text_model(input_ids=token_ids).pooler_output
        return self._model.text_projection(pooled)


class DinoEncoder:
    """The class token of DINO (Caron et al., arXiv 2104.14294) or DINOv2 after the last layer. It
    distinguishes members of a class better than CLIP."""

    def __init__(self, model: Any, device: torch.device) -> None:
        """`model`: transformers' ViTModel, Dinov2Model or Dinov2WithRegistersModel."""
        self._model, self._device = model, device
        size = model.config.image_size
        # DINOv2's config.json has the larger size of its last training phase; its authors use 224.
        self._size = size if model.config.model_type == "vit" else min(size, DINOV2_SIZE)

    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        shorter = self._size * 8 // 7  # as its authors, who crop 224 pixels from 256
        pixels = [to_pixels(image, shorter, self._size, IMAGENET_COLORS) for image in images]
        return _in_batches(self._model, torch.stack(pixels), self._device, self._encode_images)

    def embed_prompts(self, prompts: Sequence[str]) -> Tensor | None:
        return None

    def _encode_images(self, pixels: Tensor) -> Tensor:
        return self._model(pixel_values=pixels).last_hidden_state[:, 0]


def to_pixels(
    image: np.ndarray, shorter: int, size: int, colors: tuple[Sequence[float], Sequence[float]]
) -> Tensor:
    """[3, S, S] from an image [H, W, 3] uint8: its shorter side resized (bicubic) to `shorter`
    pixels, cropped to its centre of `size` pixels, and normalised with the mean and standard
    deviation of `colors`."""
    resized = Image.fromarray(image)
    width, height = (side * shorter // min(resized.size) for side in resized.size)
    resized = resized.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cropped = resized.crop((left, top, left + size, top + size))
    mean, std = (torch.tensor(channels)[:, None, None] for channels in colors)
    return (torch.from_numpy(np.array(cropped)).permute(2, 0, 1) / 255 - mean) / std


@torch.no_grad()
def _in_batches(
    model: Any, inputs: Tensor, device: torch.device, embed: Callable[[Tensor], Tensor]
) -> Tensor:
    """Embed inputs batch by batch. The model is on the device only during the call, because
    training needs the memory otherwise."""
    model.to(device)
    try:
        return torch.cat(
            [embed(batch.to(device)).float().cpu() for batch in torch.split(inputs, BATCH)]
        )
    finally:
        model.to("cpu")


# ------------------------------------------------------------------- loading


def _load_folder(folder: Path, model_type: str) -> Any:
    # Imported here to keep ComfyUI's start-up fast.
    from transformers import AutoModel, CLIPModel, CLIPVisionModelWithProjection

    files = matching(folder, "*.safetensors")
    if not files:
        raise ValueError(
            f"{folder} contains no .safetensors file, and other formats are not supported. "
            "Download the model's .safetensors version."
        )
    for file in files:
        CheckpointFile(file)  # its errors explain damaged files better than transformers' do
    classes = {"clip": CLIPModel, "clip_vision_model": CLIPVisionModelWithProjection}
    # DINO's files lack the pooling layer that transformers adds to this type by default.
    options = {"add_pooling_layer": False} if model_type == "vit" else {}
    try:
        with torch.random.fork_rng(devices=[]):  # transformers initialises missing weights randomly
            model, report = classes.get(model_type, AutoModel).from_pretrained(
                str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True,
                **options,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder} cannot be loaded as a model of type {model_type!r} ({_first_line(error)}). "
            "Download it again, or choose another."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} lacks the weight '{missing[0]}', which its config.json requires. The model "
            "is incomplete: download it again, or choose another."
        )
    return model.float().requires_grad_(False).eval()


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200]


def _load_clip_file(source: CheckpointFile) -> Any:
    """A CLIPModel if the file has a text network, otherwise a CLIPVisionModelWithProjection."""
    # Imported here to keep ComfyUI's start-up fast.
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

    if not any(key.startswith("vision_model.") for key in source.shapes):
        raise ValueError(
            f"'{source.name}' has no weights named 'vision_model.…', so it is not a CLIP "
            "image encoder. Choose a file as in ComfyUI's clip_vision folder, in the layout of "
            "transformers."
        )
    vision = _vision_config(source)
    has_text = "text_projection.weight" in source.shapes
    text = _text_config(source, vision["hidden_act"]) if has_text else {}
    config = CLIPConfig(
        vision_config=vision, text_config=text, projection_dim=vision["projection_dim"]
    )
    network = Network(
        lambda: (
            CLIPModel(config) if has_text else CLIPVisionModelWithProjection(config.vision_config)
        ),
        lambda names: {name: Place(name) for name in names},
    )
    network.require_tensors(source)
    network.read_tensors(source)
    return network.module


def _vision_config(source: CheckpointFile) -> dict[str, Any]:
    """Derived from the shapes of the weights. The activation follows from the width: OpenAI's own
    networks (768 and 1024) use its quick GELU, OpenCLIP's larger ones the usual GELU."""
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
        "image_size": patch * round((positions - 1) ** 0.5),  # without the class token
        "hidden_act": "gelu" if width in WIDE_HEADS else "quick_gelu",
    }


def _text_config(source: CheckpointFile, activation: str) -> dict[str, Any]:
    layout = TextLayout.read(source, "text_model.")
    if layout.vocabulary != CLIP_VOCABULARY:
        raise ValueError(
            f"The text encoder of '{source.name}' has a vocabulary of {layout.vocabulary} "
            f"tokens instead of CLIP's {CLIP_VOCABULARY}. Choose a CLIP with the original one."
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
            f"A network of '{source.name}' has the width {width}, which does not reveal its "
            "number of attention heads. Choose a folder with config.json instead."
        )
    return width // 64
