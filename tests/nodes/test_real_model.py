"""Train a checkpoint in the graph that ComfyUI's own loader accepts, and sample from it with
KSampler. It has Stable Diffusion 1.5's widths, random weights and a U-Net of one level."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
WARNINGS = re.compile(r"missing|unexpected|left over", re.IGNORECASE)
COMPARE = """
import json, sys
comfyui, root, path, base = sys.argv[1:]
sys.path[:0] = [comfyui, root]
sys.argv = ["main.py", "--cpu", "--base-directory", base]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.sd, torch
from pathlib import Path
from trainer import families
theirs = comfy.sd.load_checkpoint_guess_config(path, output_vae=True, output_clip=True)
unet = theirs[0].model.diffusion_model.float()
ours = families.load(Path(path), torch.device("cpu"))
generator = torch.Generator().manual_seed(0)
noisy_latents = torch.randn(2, 4, 8, 8, generator=generator)
hidden = torch.randn(2, 77, 768, generator=generator)
timesteps = torch.tensor([5, 800])
with torch.no_grad():
    a = unet(noisy_latents, timesteps, context=hidden)
    b = ours.unet(noisy_latents, timesteps, hidden).sample
print(json.dumps([(a - b).abs().max().item(), b.abs().max().item()]))
"""


@pytest.fixture(scope="module")
def checkpoint(comfyui, sd15_checkpoint):
    """The file, in ComfyUI's checkpoints folder."""
    path = comfyui.base / "models" / "checkpoints" / "random.safetensors"
    os.link(sd15_checkpoint, path)
    yield path
    path.unlink()


@pytest.fixture
def graph(checkpoint, toy_graph, new_seed):
    """Two training steps on the checkpoint, without sampling."""
    graph = toy_graph(
        seed=new_seed,
        name="trained",
        **{"preset": "object", "preset.steps": 2, "preset.learning_rate": 1e-3},
    )
    graph["1"]["inputs"]["checkpoint"] = checkpoint.name
    graph["2"]["inputs"] |= {"resolution": 64, "allow_upscaling": True}
    del graph["4"], graph["5"]
    return graph


def ksampler(model, clip, vae):
    """Build ComfyUI's own nodes from a MODEL, a CLIP and a VAE to a saved image of 64 pixels."""
    return {
        "20": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": "a photo"}},
        "21": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "22": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "positive": ["20", 0], "negative": ["20", 0],
                "latent_image": ["21", 0], "seed": 0, "steps": 2, "cfg": 1.0,
                "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            },
        },
        "23": {"class_type": "VAEDecode", "inputs": {"samples": ["22", 0], "vae": vae}},
        "24": {
            "class_type": "SaveImage",
            "inputs": {"images": ["23", 0], "filename_prefix": "ksampler"},
        },
    }  # fmt: skip


def test_train_and_sample_with_ksampler_in_one_graph(comfyui, graph):
    since = len(comfyui.log.read_text())
    graph["6"] = {"class_type": "DreamBoothUseTrainedModel", "inputs": {"model_source": ["3", 0]}}
    graph |= ksampler(["6", 0], ["6", 1], ["6", 2])
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    (saved,) = outcome.outputs("24")["images"]
    with Image.open(comfyui.base / "output" / saved["filename"]) as image:
        assert image.size == (64, 64)
    # Another graph loads the same file by its name.
    name = os.path.join("dreambooth", "trained.safetensors")
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}
    outcome = comfyui.run({"6": loader} | ksampler(["6", 0], ["6", 1], ["6", 2]))
    assert outcome.end == "execution_success", outcome.error
    log = comfyui.log.read_text()[since:]
    assert [line for line in log.splitlines() if WARNINGS.search(line)] == []


def test_models_from_the_graph_are_saved_unchanged_for_training(comfyui, checkpoint, graph):
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}}
    graph["6"] = loader
    graph["1"] = {
        "class_type": "DreamBoothModelFromGraph",
        "inputs": {"model": ["6", 0], "clip": ["6", 1], "vae": ["6", 2]},
    }
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert "Loading Model from Graph" in outcome.texts
    (saved,) = (comfyui.base / "temp" / "dreambooth" / "models").iterdir()
    before, after = load_file(checkpoint), load_file(saved)
    assert re.fullmatch(r"graph-[0-9a-f]{16}\.safetensors", saved.name)
    assert [
        name for name in before if not torch.equal(before[name].float(), after[name].float())
    ] == []


def test_the_layer_of_the_graph_reaches_the_trained_checkpoint(comfyui, checkpoint, graph):
    """CLIP Set Last Layer before Model from Graph, and a patch that no file can hold."""
    seen = {path.name for path in _graph_models(comfyui)}
    graph |= {
        "6": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}},
        "7": {
            "class_type": "CLIPSetLastLayer",
            "inputs": {"clip": ["6", 1], "stop_at_clip_layer": -2},
        },
        "8": {
            "class_type": "FreeU_V2",
            "inputs": {"model": ["6", 0], "b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
        },
        "1": {
            "class_type": "DreamBoothModelFromGraph",
            "inputs": {"model": ["8", 0], "clip": ["7", 0], "vae": ["6", 2]},
        },
        "9": {"class_type": "DreamBoothUseTrainedModel", "inputs": {"model_source": ["3", 0]}},
    }
    graph |= ksampler(["9", 0], ["9", 1], ["9", 2])
    graph["3"]["inputs"]["name"] = "penultimate"
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    left_out = (
        "Left out of the checkpoint, because a file of weights cannot hold it: FreeU_V2. It "
        "changes how ComfyUI draws, but not what is trained."
    )
    assert left_out in outcome.warnings
    on_cpu = "ComfyUI runs on the CPU. There, training a full-size model takes hours"
    assert any(warning.startswith(on_cpu) for warning in outcome.warnings)
    (saved,) = (path for path in _graph_models(comfyui) if path.name not in seen)
    trained = comfyui.base / "models" / "checkpoints" / "dreambooth" / "penultimate.safetensors"
    for path in (saved, trained):
        with safe_open(path, "pt") as file:
            assert file.metadata()["dreambooth.clip_skip"] == "2"


def _graph_models(comfyui):
    return list((comfyui.base / "temp" / "dreambooth" / "models").glob("*"))


def test_comfyui_and_diffusers_predict_the_same(checkpoint, tmp_path):
    done = subprocess.run(
        [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", COMPARE,
            os.environ["COMFYUI_PATH"], str(ROOT), str(checkpoint), str(tmp_path),
        ],
        capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    difference, size = json.loads(done.stdout.splitlines()[-1])
    assert difference < 1e-4 * max(size, 1)
