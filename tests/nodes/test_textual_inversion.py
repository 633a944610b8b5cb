"""Embeddings in a real ComfyUI: its CLIP Text Encode reads our files, and computes the same for
`embedding:name` as our text encoder for the placeholder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from trainer import families
from trainer.families.embedding import PLACEHOLDER_KEY, Embedding
from trainer.loop import train
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import DatasetConfig, OptimizerConfig, OutputConfig, TrainingConfig

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
NAMES = ["my-one", "my-two", "my-three", "my-trained"]
"""Embeddings of one, two and three random vectors, and one of three trained vectors."""
WEIGHT = 1.2
WEIGHTED = ":1.2)"
PROMPTS = {
    "{token}": "{token}",
    "a photo of {token}": "a photo of {token}",
    "{token} on the beach, by night": "{token} on the beach, by night",
    "two dogs, {token}, and a very old tree": "two dogs, {token}, and a very old tree",
    "{token} beside {token}": "{token} beside {token}",
    "a photo of ({token}:1.2)": "a photo of {token}",
    "({token}:1.2) in the snow": "{token} in the snow",
}
"""ComfyUI's prompts and our captions for them, which have no weights."""
ENCODE = """
import json, sys
comfyui, checkpoint, embeddings, base, out = sys.argv[1:6]
prompts = json.loads(sys.stdin.read())
sys.path.insert(0, comfyui)
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, torch
import nodes
from safetensors.torch import save_file
clip = comfy.sd.load_checkpoint_guess_config(
    checkpoint, output_vae=False, output_clip=True, embedding_directory=[embeddings]
)[1]
with torch.inference_mode():
    found = [nodes.CLIPTextEncode().encode(clip, prompt)[0][0][0] for prompt in prompts]
save_file({str(i): hidden.float().contiguous() for i, hidden in enumerate(found)}, out)
"""


def comfyui_encodes(checkpoint: Path, embeddings: Path, prompts: list[str]) -> list[torch.Tensor]:
    """Return ComfyUI's conditioning [77, 768] of each prompt."""
    out = embeddings / "encoded.safetensors"
    done = subprocess.run(
        [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", ENCODE,
            os.environ["COMFYUI_PATH"], str(checkpoint), str(embeddings), str(embeddings), str(out),
        ],
        input=json.dumps(prompts), capture_output=True, text=True, cwd=os.environ["COMFYUI_PATH"],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "does not exist" not in done.stderr
    tensors = load_file(out)
    return [tensors[str(i)][0] for i in range(len(prompts))]


@pytest.fixture(scope="module")
def model(needs_comfyui, sd15_checkpoint):
    """Our model, without the embeddings."""
    return families.load(sd15_checkpoint, CPU)


@pytest.fixture(scope="module")
def embeddings(sd15_checkpoint, model, tmp_path_factory) -> Path:
    """The folder of the embedding files. They are added to the model too."""
    folder = tmp_path_factory.mktemp("embeddings")
    for number, name in enumerate(NAMES[:-1], start=1):
        generator = torch.Generator().manual_seed(number)
        vectors = 0.05 * torch.randn(number, 768, generator=generator)
        path = folder / f"{name}.safetensors"
        save_file({"clip_l": vectors}, path, {PLACEHOLDER_KEY: f"<{name}>"})
    train_embedding(NAMES[-1], sd15_checkpoint, folder)
    for name in NAMES:
        model.add_embedding(Embedding.read(folder / f"{name}.safetensors"))
    return folder


def train_embedding(name: str, checkpoint: Path, folder: Path) -> None:
    photo = folder / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photo)
    config = TrainingConfig(
        base=checkpoint,
        dataset=DatasetConfig(photos=(photo,), prompt="-", resolution=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        output=OutputConfig(folder=folder, name=name),
        steps=1,
        batch_size=1,
    )
    method = TextualInversion(
        placeholder=f"<{name}>", initializer="white cup", num_vectors=3, templates="object"
    )
    train(config, method, device=CPU)


@pytest.fixture(scope="module")
def encoded(sd15_checkpoint, embeddings) -> dict[str, torch.Tensor]:
    """ComfyUI's conditioning [77, 768] of each prompt with each embedding."""
    prompts = [prompt.format(token=f"embedding:{name}") for name in NAMES for prompt in PROMPTS]
    return dict(zip(prompts, comfyui_encodes(sd15_checkpoint, embeddings, prompts), strict=True))


def encode(model, caption: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_captions([caption]).hidden[0]


def weighted(model, caption: str) -> torch.Tensor:
    """Encode a caption as ComfyUI does for a weight: the rows of learned tokens are moved away from
    those of the empty prompt."""
    hidden, empty = encode(model, caption), encode(model, "")
    learned = model.tokenizer.encode([caption])[0] >= len(model.token_tables()["clip_l"].weight)
    hidden[learned] = empty[learned] + WEIGHT * (hidden - empty)[learned]
    return hidden


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("name", NAMES)
def test_comfyui_computes_our_conditioning(model, encoded, name, prompt):
    theirs = encoded[prompt.format(token=f"embedding:{name}")]
    caption = PROMPTS[prompt].format(token=f"<{name}>")
    ours = weighted(model, caption) if WEIGHTED in prompt else encode(model, caption)
    assert (theirs - ours).abs().max() <= 5e-3
    # It differs clearly from that of the prompt without the embedding.
    assert (theirs - encode(model, PROMPTS[prompt].format(token=""))).abs().max() > 0.1


def test_embeddings_have_the_requested_number_of_vectors(embeddings):
    found = {name: load_file(embeddings / f"{name}.safetensors") for name in NAMES}
    assert {name: tuple(file["clip_l"].shape) for name, file in found.items()} == {
        "my-one": (1, 768), "my-two": (2, 768), "my-three": (3, 768), "my-trained": (3, 768),
    }  # fmt: skip
