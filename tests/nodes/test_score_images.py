"""Score Images inside a real ComfyUI returns the same scores as the trainer."""

import numpy as np
import pytest
import torch
from PIL import Image

from trainer import toy
from trainer.evaluation import encoders
from trainer.evaluation.scores import ImageScorer

pytestmark = pytest.mark.xdist_group("comfyui")

TOY = "toy (embedded)"
NO_PROMPT = (
    "Score Images has no prompt fidelity: prompt is empty, or the judge {} has no text encoder. "
    "Write what the images show, or choose a CLIP with one."
)
OUTPUTS = ["subject fidelity", "prompt fidelity", "memorisation", "diversity"]


@pytest.fixture(scope="module")
def photos():
    return [np.asarray(Image.open(path)) for path in sorted(toy.PHOTOS.glob("*.png"))]


@pytest.fixture
def graph(comfyui, photos):
    """Builds a workflow that scores the first two of the toy's photos. Nodes from 10 on show the
    named outputs. Keyword arguments are inputs of Score Images."""
    pair = np.concatenate(photos[:2], axis=1)
    Image.fromarray(pair).save(comfyui.base / "input" / "pair.png")

    def build(*shown, **settings):
        side = photos[0].shape[0]
        crop = {"width": side, "height": side, "y": 0, "image": ["1", 0]}
        folder = {
            "folder": "toy cup photos (embedded)", "instance_prompt": "a photo of sks cup",
            "resolution": side, "crop": "center", "buckets": False, "mirror": False,
            "allow_upscaling": False, "background": "white",
        }  # fmt: skip
        score = {"images": ["4", 0], "photos": ["5", 1], "prompt": "", "judge": TOY, **settings}
        graph = {
            "1": {"class_type": "LoadImage", "inputs": {"image": "pair.png"}},
            "2": {"class_type": "ImageCrop", "inputs": {**crop, "x": 0}},
            "3": {"class_type": "ImageCrop", "inputs": {**crop, "x": side}},
            "4": {"class_type": "ImageBatch", "inputs": {"image1": ["2", 0], "image2": ["3", 0]}},
            "5": {"class_type": "DreamBoothLoadInstanceImages", "inputs": folder},
            "6": {"class_type": "DreamBoothScoreImages", "inputs": score},
        }
        for name in shown:
            place = OUTPUTS.index(name)
            inputs = {"source": ["6", place]}
            graph[f"1{place}"] = {"class_type": "PreviewAny", "inputs": inputs}
        return graph

    return build


def shown(outcome, name):
    return float("".join(outcome.outputs(f"1{OUTPUTS.index(name)}")["text"]))


def test_scores_equal_those_of_the_trainer(comfyui, graph, photos):
    outcome = comfyui.run(graph(*OUTPUTS, prompt="a photo of a red cup"))
    assert outcome.end == "execution_success", outcome.error
    encoder = encoders.load(toy.JUDGE, torch.device("cpu"))
    means = ImageScorer(encoder, photos, ["a photo of a red cup"]).score(photos[:2]).means
    assert {name: shown(outcome, name) for name in OUTPUTS} == pytest.approx(means, abs=1e-4)
    assert shown(outcome, "memorisation") == pytest.approx(1, abs=1e-4)
    # The chart is shown on the node.
    assert len(outcome.outputs("6")["images"]) == 1


def test_each_image_may_have_its_own_prompt(comfyui, graph):
    names = ["subject fidelity", "prompt fidelity", "memorisation"]
    outcome = comfyui.run(graph(*names, prompt="a red cup\na blue cup"))
    assert outcome.end == "execution_success", outcome.error
    outcome = comfyui.run(graph(prompt="a red cup\na blue cup\na green cup"))
    assert outcome.error == (
        "6",
        "There are 2 images and 3 prompts. Give one prompt for each image, one for all of them, or "
        "none.",
    )


def test_missing_scores_are_explained(comfyui, graph):
    outcome = comfyui.run(graph("prompt fidelity"))
    assert outcome.end == "execution_success", outcome.error
    assert NO_PROMPT.format(TOY) in outcome.last_texts["6"].splitlines()
    outcome = comfyui.run(graph("diversity", prompt="a red cup\na blue cup"))
    assert outcome.last_texts["6"].splitlines() == [
        "Score Images has no diversity: it needs two images of one prompt. Connect more of them."
    ]


def test_an_image_encoder_in_its_own_folder(comfyui, graph, photos):
    """A DINO with random weights, which transformers saves below ComfyUI's clip_vision folder."""
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        patch_size=8, image_size=56,
    )  # fmt: skip
    folder = comfyui.base / "models" / "clip_vision" / "small dino"
    ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    menu = comfyui.get("/object_info/DreamBoothScoreImages")["DreamBoothScoreImages"]
    judges = menu["input"]["optional"]["judge"][1]["options"]
    assert judges == [TOY, "small dino/model.safetensors"]
    outcome = comfyui.run(graph("subject fidelity", "diversity", judge=judges[1]))
    assert outcome.end == "execution_success", outcome.error
    means = ImageScorer(encoders.load(folder, torch.device("cpu")), photos).score(photos[:2]).means
    assert shown(outcome, "subject fidelity") == pytest.approx(means["subject fidelity"], abs=1e-4)
    outcome = comfyui.run(graph("prompt fidelity", judge=judges[1], prompt="a cup"))
    assert NO_PROMPT.format(judges[1]) in outcome.last_texts["6"].splitlines()
