"""Clip skip through the nodes: one widget of Load Base Model decides for all that follow."""

import json

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.xdist_group("comfyui")


def test_class_images_training_and_drawing_use_the_layer_of_load_base_model(
    comfyui, toy_graph, priors_node, new_seed
):
    graph = toy_graph(seed=new_seed, name="skipped", **{"preset.prior_weight": 1.0})
    graph["1"]["inputs"]["clip_skip"] = 2
    graph["3"]["inputs"]["class_dataset"] = ["6", 0]
    graph["6"] = priors_node(2, seed=77)
    images = {"class_type": "SaveImage", "inputs": {"filename_prefix": "layers"}}
    graph["5"]["inputs"]["images"] = ["4", 0]
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.steps[-1] == 3
    path = comfyui.base / "models" / "checkpoints" / "dreambooth" / "skipped.safetensors"
    with safe_open(path, "pt") as file:
        assert file.metadata()["dreambooth.clip_skip"] == "2"
    albums = (comfyui.base / "output" / "dreambooth" / "class_images").glob("*/manifest.jsonl")
    lines = [json.loads(line) for album in albums for line in album.read_text().splitlines()]
    assert [line["clip_skip"] for line in lines if line["first_seed"] == 77] == [2, 2]

    # Another workflow that only knows the file draws the same, and another layer differs.
    sampling = dict(graph["4"]["inputs"])
    drawn = {}
    for clip_skip in (0, 1):
        loader = {"checkpoint": "dreambooth/skipped.safetensors", "clip_skip": clip_skip}
        again = {
            "1": {**graph["1"], "inputs": loader},
            "4": {**graph["4"], "inputs": {**sampling, "model_source": ["1", 0]}},
            "5": {**images, "inputs": {**images["inputs"], "images": ["4", 0]}},
        }
        done = comfyui.run(again)
        assert done.end == "execution_success", done.error
        drawn[clip_skip] = pixels(comfyui, done)
    assert pixels(comfyui, outcome) == drawn[0] != drawn[1]


def test_a_layer_that_the_model_lacks_is_refused_on_the_node(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed)
    graph["1"]["inputs"]["clip_skip"] = 4
    outcome = comfyui.run(graph)
    assert outcome.error == (
        "3",
        "clip_skip is 4, but the text encoder of 'toy (embedded)' has 3 layers. Choose a "
        "clip_skip between 1 and 3.",
    )
    graph["1"]["inputs"]["clip_skip"] = 3
    assert comfyui.run(graph).end == "execution_success"


def pixels(comfyui, outcome):
    from PIL import Image

    found = []
    for saved in outcome.outputs("5")["images"]:
        with Image.open(comfyui.base / "output" / saved["subfolder"] / saved["filename"]) as image:
            found.append(image.tobytes())
    return found
