"""Widen the included model to Stable Diffusion XL's layout, and train it on the cup of the demo:
`python -m benchmarks.toy_xl --seeds 3`.

At first it draws what the included model draws: the columns of cross-attention that read the second
text encoder, and the last layer of the embedding of pooled text and sizes, are zeros. Training then
uses them all."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.families import key_maps
from trainer.families.layouts import UNET
from trainer.families.networks import SIZE_WIDTH
from trainer.families.sd1 import TEXT
from trainer.families.sdxl import SDXL
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.toy import MODEL, demo
from trainer.toy.networks import TEXT_WIDTH

NUM_SIZES = 6
CPU = torch.device("cpu")
METHOD = FullFineTune(train_text_encoder=True, train_text_encoder_2=True)


def widen(path: Path) -> Path:
    """Write the widened model, and return its path."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(MODEL).items():
        widened = name.replace(TEXT, SDXL.text_encoder_specs[0].prefixes[0])
        tensors[widened] = _widened(name, tensor)
    with safe_open(MODEL, framework="pt") as file:
        metadata = file.metadata()
    constants = json.loads(metadata["dreambooth.constants"])
    # What the included model shares with Stable Diffusion 1.
    constants |= {"unet_heads": 8, "text_heads": 12, "text_norm": True, "latent_scale": 0.18215}
    metadata |= {"dreambooth.constants": json.dumps(constants), "dreambooth.clip_skip": "1"}
    tensors = {name: tensor.contiguous() for name, tensor in {**tensors, **_added()}.items()}
    save_file(tensors, path, metadata=metadata)
    return path


def _widened(name: str, tensor: Tensor) -> Tensor:
    if name.startswith(UNET) and name.endswith((".proj_in.weight", ".proj_out.weight")):
        return tensor[:, :, 0, 0]
    if name.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):
        return torch.cat([tensor, torch.zeros_like(tensor)], dim=1)
    return tensor


def _added() -> dict[str, Tensor]:
    """The second text encoder, and the embedding of pooled text and sizes."""
    first = {n.removeprefix(TEXT): t for n, t in load_file(MODEL).items() if TEXT in n}
    first.pop("embeddings.position_ids", None)
    first["text_projection.weight"] = torch.eye(TEXT_WIDTH).half()
    places = key_maps.open_clip_places(first, SDXL.text_encoder_specs[1].prefixes[0])
    width = load_file(MODEL)[f"{UNET}time_embed.2.bias"].numel()
    given = TEXT_WIDTH + NUM_SIZES * SIZE_WIDTH
    generator = torch.Generator().manual_seed(0)
    return {
        **key_maps.in_file_layout(first, places),
        f"{UNET}label_emb.0.0.weight": torch.randn(width, given, generator=generator).half()
        / given**0.5,
        f"{UNET}label_emb.0.0.bias": torch.zeros(width).half(),
        f"{UNET}label_emb.0.2.weight": torch.zeros(width, width).half(),
        f"{UNET}label_emb.0.2.bias": torch.zeros(width).half(),
    }


def train(base: Path, folder: Path, seed: int) -> dict[str, float]:
    """The demo's scores with the widened model, whose text encoders are both trained."""
    config = demo.demo_config(folder).replace({"base": base, "seed": seed})
    report = demo.run_demo(config, CPU, Observer(), METHOD)
    return {name: value for name, value in report.items() if "score" in name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("out/toy_xl"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = widen(Path(folder) / "toy-xl.safetensors")
        found = [train(base, arguments.folder / str(n), n) for n in range(arguments.seeds)]
    for name in found[0]:
        scores = [each[name] for each in found]
        spread = f"{min(scores):.2f} to {max(scores):.2f}"
        print(f"{name:22} {statistics.mean(scores):.2f} ({spread})")  # noqa: T201


if __name__ == "__main__":
    main()
