"""Learned words in the real ComfyUI: its CLIP Text Encode reads our files, and gives for
`embedding:name` what our text encoder gives for the placeholder."""

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
from trainer.families.base import Framing
from trainer.families.embedding import PLACEHOLDER_KEY, Embedding
from trainer.loop import train
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import DatasetConfig, OptimizerConfig, OutputConfig, TrainingConfig

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
WORDS = ["my-one", "my-two", "my-three", "my-trained"]
"""Of one, two and three vectors by hand, and of three written by training."""
WEIGHT = 1.2
WEIGHTED = ":1.2)"
PROMPTS = {
    "{word}": "{word}",
    "a photo of {word}": "a photo of {word}",
    "{word} on the beach, by night": "{word} on the beach, by night",
    "two dogs, {word}, and a very old tree": "two dogs, {word}, and a very old tree",
    "{word} beside {word}": "{word} beside {word}",
    "a photo of ({word}:1.2)": "a photo of {word}",
    "({word}:1.2) in the snow": "{word} in the snow",
}
"""As ComfyUI's prompts have it, and as ours do. In brackets with a weight: `WEIGHT`."""
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
    """[77, 768] for each prompt."""
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
    """Ours, which knows none of the words yet."""
    return families.load(sd15_checkpoint, CPU)


@pytest.fixture(scope="module")
def embeddings(sd15_checkpoint, model, tmp_path_factory) -> Path:
    """A folder with a file for each of `WORDS`; the model knows them all."""
    folder = tmp_path_factory.mktemp("embeddings")
    for number, word in enumerate(WORDS[:-1], start=1):
        generator = torch.Generator().manual_seed(number)
        vectors = 0.05 * torch.randn(number, 768, generator=generator)
        path = folder / f"{word}.safetensors"
        save_file({"clip_l": vectors}, path, {PLACEHOLDER_KEY: f"<{word}>"})
    train_word(WORDS[-1], sd15_checkpoint, folder)
    for word in WORDS:
        model.add_embedding(Embedding.read(folder / f"{word}.safetensors"))
    return folder


def train_word(word: str, checkpoint: Path, folder: Path) -> None:
    photo = folder / "photo.png"
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(photo)
    config = TrainingConfig(
        base=checkpoint,
        dataset=DatasetConfig(photos=(photo,), prompt="-", resolution=64),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        output=OutputConfig(folder=folder, name=word),
        steps=1,
        batch_size=1,
    )
    method = TextualInversion(
        placeholder=f"<{word}>", initializer="white cup", num_vectors=3, templates="object"
    )
    train(config, method, device=CPU)


@pytest.fixture(scope="module")
def encoded(sd15_checkpoint, embeddings) -> dict[str, torch.Tensor]:
    """ComfyUI's conditioning [77, 768] of each prompt with each word."""
    prompts = [prompt.format(word=f"embedding:{word}") for word in WORDS for prompt in PROMPTS]
    return dict(zip(prompts, comfyui_encodes(sd15_checkpoint, embeddings, prompts), strict=True))


def encode(model, caption: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_captions([caption], [Framing((64, 64), (0, 0), (64, 64))]).hidden[0]


def weighted(model, caption: str) -> torch.Tensor:
    """The learned word's rows are moved away from the empty prompt's."""
    hidden, empty = encode(model, caption), encode(model, "")
    learned = model.tokenizer.encode([caption])[0] >= len(model.token_tables()["clip_l"].weight)
    hidden[learned] = empty[learned] + WEIGHT * (hidden - empty)[learned]
    return hidden


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("word", WORDS)
def test_comfyui_gives_our_conditioning(model, encoded, word, prompt):
    theirs = encoded[prompt.format(word=f"embedding:{word}")]
    caption = PROMPTS[prompt].format(word=f"<{word}>")
    ours = weighted(model, caption) if WEIGHTED in prompt else encode(model, caption)
    assert (theirs - ours).abs().max() <= 5e-3
    # Far from what the prompt would give if the word were passed over.
    assert (theirs - encode(model, PROMPTS[prompt].format(word=""))).abs().max() > 0.1


def test_words_have_the_vectors_that_were_asked_for(embeddings):
    found = {word: load_file(embeddings / f"{word}.safetensors") for word in WORDS}
    assert {word: tuple(file["clip_l"].shape) for word, file in found.items()} == {
        "my-one": (1, 768), "my-two": (2, 768), "my-three": (3, 768), "my-trained": (3, 768),
    }  # fmt: skip
