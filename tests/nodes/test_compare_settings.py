"""Compare Settings inside a real ComfyUI: images and scores of the stages of a training."""

import re

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("comfyui")

SAMPLING = {
    "prompts": "a photo of sks cup at night\na photo of sks cup in the snow", "scheduler": "DDIM",
    "second_scheduler": "none", "third_scheduler": "none", "steps": "2", "guidance_scale": 4.0,
    "seed": 7, "negative_prompt": "", "width": 0, "height": 0, "batch_size": 2,
    "precision": "fp32", "judge": "none",
}  # fmt: skip


@pytest.fixture
def graph(toy_graph, new_seed):
    """Builds a training and, as node 4, the comparison of its saved checkpoints. Keyword arguments
    are inputs of Compare Settings."""

    def build(**settings):
        train = {
            "preset.steps": 4, "save_every": 1, "keep_saves": 2, "seed": new_seed,
            "name": f"stages-{new_seed}",
        }  # fmt: skip
        graph = toy_graph(**train)
        compared = {"saves": ["3", 4], **SAMPLING, **settings}
        graph["4"] = {"class_type": "DreamBoothCompareSettings", "inputs": compared}
        for number, output in enumerate(("images", "grid", "chart")):
            inputs = {"images": ["4", number], "filename_prefix": output}
            graph[f"1{number}"] = {"class_type": "SaveImage", "inputs": inputs}
        graph["13"] = {"class_type": "PreviewAny", "inputs": {"source": ["4", 3]}}
        return graph

    return build


def saved(comfyui, outcome, node):
    """Return the images that a Save Image node wrote."""
    found = []
    for file in outcome.outputs(node)["images"]:
        with Image.open(comfyui.base / "output" / file["filename"]) as image:
            found.append(np.asarray(image.convert("RGB")))
    return found


def titles(outcome):
    """Return the titles of the rows in the table of scores."""
    lines = "".join(outcome.outputs("13")["text"]).splitlines()
    assert re.split(" {2,}", lines[0].strip()) == [
        "subject fidelity",
        "prompt fidelity",
        "memorisation",
    ]
    return [line.rsplit(maxsplit=3)[0] for line in lines[1:]]


def test_the_stages_of_a_training_are_drawn_and_scored(comfyui, graph, new_seed):
    prompt = graph(judge="toy (embedded)", photos=["2", 1], second_scheduler="Euler")
    prompt["4"]["inputs"]["model_sources.model_source0"] = ["1", 0]
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    name = f"stages-{new_seed}"
    # Of the saves of steps 1 to 4 only two are kept, and the last one is the result.
    stages = ["toy (embedded)", f"{name}-step000003", name]
    settings = [f"{stage}, {by}" for stage in stages for by in ("DDIM", "Euler")]
    assert titles(outcome) == settings
    drawn = saved(comfyui, outcome, "10")
    assert len(drawn) == 2 * len(settings)
    assert {image.shape for image in drawn} == {(64, 64, 3)}
    assert not np.array_equal(drawn[0], drawn[4])
    ((grid,), (chart,)) = saved(comfyui, outcome, "11"), saved(comfyui, outcome, "12")
    assert grid.shape[0] > len(settings) * 128
    assert chart.shape[1] == 800
    # Queued again, the finished run is reused with the saves that still exist.
    folder = comfyui.base / "models" / "checkpoints" / "dreambooth"
    (folder / f"{name}-step000003.safetensors").unlink()
    prompt["4"]["inputs"]["steps"] = "1, 2"
    prompt["3"]["inputs"]["on_existing"] = "resume"
    again = comfyui.run(prompt)
    assert again.end == "execution_success", again.error
    assert again.steps == []
    assert len(saved(comfyui, again, "10")) == 2 * 2 * 2 * 2


def test_without_a_judge_the_grid_is_drawn_and_missing_scores_are_explained(comfyui, graph):
    prompt = graph(photos=["2", 1])
    for node in ("12", "13"):
        prompt.pop(node)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    assert len(saved(comfyui, outcome, "11")) == 1
    # Also if nothing is connected that needs the scores: what is connected later is left out then.
    assert outcome.last_texts["4"].splitlines()[-1] == (
        "Compare Settings had no judge, so there are no scores. Choose one, and connect photos of "
        "the subject."
    )
    prompt["4"]["inputs"]["judge"] = "toy (embedded)"
    assert "no scores" not in comfyui.run(prompt).last_texts["4"]
    outcome = comfyui.run(graph(photos=["2", 1]))
    assert outcome.end == "execution_success", outcome.error
    assert {"12", "13"}.isdisjoint(
        data["node"] for kind, data in outcome.events if kind == "executed"
    )


def test_the_same_model_twice_is_drawn_once(comfyui, graph):
    prompt = graph(**{f"model_sources.model_source{number}": ["1", 0] for number in (0, 1)})
    prompt["4"]["inputs"].pop("saves")
    for node in ("3", "12", "13"):
        prompt.pop(node)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    assert len(saved(comfyui, outcome, "10")) == 2


STRENGTHS = "Write numbers from -5 to 5 with commas between them: 1, or 0, 0.5, 1."
NUMBERS = "Write whole numbers from 1 to 1000 with commas between them: 25, or 10, 25, 100."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, f"steps is 'many'. {NUMBERS}"),
        ({"steps": ""}, f"steps is ''. {NUMBERS}"),
        ({"steps": "10, 1001"}, f"steps is '10, 1001'. {NUMBERS}"),
        ({"steps": "10; 20"}, f"steps is '10; 20'. {NUMBERS}"),
        ({"steps": "2.5"}, f"steps is '2.5'. {NUMBERS}"),
        ({"steps": "0"}, f"steps is '0'. {NUMBERS}"),
        ({"steps": "-3"}, f"steps is '-3'. {NUMBERS}"),
        ({"lora_strengths": "strong"}, f"lora_strengths is 'strong'. {STRENGTHS}"),
        ({"lora_strengths": ""}, f"lora_strengths is ''. {STRENGTHS}"),
        ({"lora_strengths": "0, 6"}, f"lora_strengths is '0, 6'. {STRENGTHS}"),
        ({"lora_strengths": "nan"}, f"lora_strengths is 'nan'. {STRENGTHS}"),
        (
            {"judge": "toy (embedded)"},
            "judge is toy (embedded), but there are no photos to compare the images with. "
            "Connect photos of the subject, such as the preview of Load Instance Images, or set "
            "judge to none.",
        ),
        (
            {"model_sources.model_source0": None},
            "No model is connected. Connect saves of DreamBooth Train, or a model source to "
            "model_sources.",
        ),
        ({"prompts": " "}, "prompts is empty. Write one prompt per line."),
    ],
)
def test_inputs_that_cannot_be_compared_are_refused(comfyui, graph, change, message):
    prompt = graph(**{"model_sources.model_source0": ["1", 0], **change})
    inputs = prompt["4"]["inputs"]
    inputs.pop("saves")
    prompt["4"]["inputs"] = {name: value for name, value in inputs.items() if value is not None}
    for node in ("2", "3", "12", "13"):
        prompt.pop(node)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_error"
    assert outcome.error == ("4", message)


def test_stages_of_textual_inversion_are_distinguished(comfyui, graph, new_seed):
    """All stages of textual inversion have the same checkpoint and differ only in the embedding."""
    prompt = graph(judge="toy (embedded)", photos=["2", 1], prompts="a photo of a <my-cup> cup")
    prompt["2"]["inputs"]["instance_prompt"] = "a photo of <my-cup>"
    prompt["3"] = {
        "class_type": "DreamBoothTextualInversionTrain",
        "inputs": {
            "model_source": ["1", 0], "dataset": ["2", 0], "placeholder": "<my-cup>",
            "initializer": "cup", "num_vectors": 0, "preset": "toy",
            "preset.learning_rate": 3e-3, "preset.steps": 2, "preset.batch_size": 1,
            "preset.templates": "captions", "seed": new_seed, "save_every": 1,
            "name": f"token-{new_seed}", "on_existing": "reuse",
        },
    }  # fmt: skip
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    result = f"toy (embedded) + token-{new_seed}"
    assert titles(outcome) == [f"{result}-step000001", result]
