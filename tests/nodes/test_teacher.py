"""The class kept without class images: anchor and teacher of Optimizer Settings, in a real
ComfyUI."""

import json

import pytest
from safetensors import safe_open

pytestmark = pytest.mark.xdist_group("comfyui")


@pytest.fixture
def graph(toy_graph, new_seed):
    """Builds the toy workflow with Optimizer Settings. Keyword arguments are its inputs."""

    def build(**settings):
        graph = toy_graph(seed=new_seed, name=f"kept-{new_seed}", optimizer_settings=["8", 0])
        graph["8"] = {"class_type": "DreamBoothOptimizerSettings", "inputs": settings}
        return graph

    return build


def test_anchor_and_teacher_are_used_without_class_images(comfyui, graph, new_seed):
    asked = {"anchor": 2.5, "teacher_weight": 0.5, "teacher_ratio": 0.25,
             "class_prompt": "a photo of a cup"}  # fmt: skip
    outcome = comfyui.run(graph(optimizer="AdamW", **asked))
    assert outcome.end == "execution_success", outcome.error
    (path,) = (comfyui.base / "models" / "checkpoints").rglob(f"kept-{new_seed}.safetensors")
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["dreambooth.config"])
    assert config["optimizer"]["anchor"] == 2.5
    prior = config["prior"]
    assert (prior["weight"], prior["teacher_weight"], prior["teacher_ratio"]) == (0, 0.5, 0.25)
    assert prior["prompt"] == "a photo of a cup"


def test_a_teacher_without_a_class_prompt_is_refused(comfyui, graph):
    assert comfyui.run(graph(optimizer="AdamW", teacher_weight=1.0)).error == (
        "3",
        "teacher_weight of Optimizer Settings is 1 but class_prompt is empty. Name the class, such "
        "as 'a photo of a dog', or set teacher_weight of Optimizer Settings to 0.",
    )


def test_the_teacher_takes_the_class_prompt_of_the_class_images(
    comfyui, graph, priors_node, new_seed
):
    prompt = graph(optimizer="AdamW", teacher_weight=1.0)
    prompt["6"] = priors_node(2, seed=new_seed, steps=2, batch_size=2)
    prompt["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    prompt["8"]["inputs"]["class_prompt"] = "a photo of a car"
    assert comfyui.run(prompt).error == (
        "3",
        "class_prompt of Optimizer Settings is 'a photo of a car', but the class images show "
        "'a photo of a cup'. Leave it empty, or write the same.",
    )


def test_textual_inversion_has_no_teacher(comfyui, graph, new_seed):
    prompt = graph(optimizer="AdamW", teacher_weight=1.0, class_prompt="a cup")
    prompt["2"]["inputs"]["instance_prompt"] = "a photo of <my-cup>"
    prompt["3"] = {
        "class_type": "DreamBoothTextualInversionTrain",
        "inputs": {
            "model_source": ["1", 0], "dataset": ["2", 0], "optimizer_settings": ["8", 0],
            "placeholder": "<my-cup>", "initializer": "cup", "num_vectors": 0, "preset": "toy",
            "preset.learning_rate": 3e-3, "preset.steps": 2, "preset.batch_size": 1,
            "preset.templates": "captions", "seed": new_seed, "save_every": 0,
            "name": f"cup-{new_seed}", "on_existing": "reuse",
        },
    }  # fmt: skip
    assert comfyui.run(prompt).error == (
        "3",
        "teacher_weight of Optimizer Settings is 1, but textual inversion does not change the "
        "model, so there is nothing to preserve. Set teacher_weight of Optimizer Settings to 0.",
    )
