"""Scored previews inside a real ComfyUI: progress texts, the chart and the best step."""

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("comfyui")

PREVIEW = {
    "prompts": "a photo of sks cup at night\na photo of sks cup in the snow", "every": 2,
    "scheduler": "DDIM", "steps": 2, "guidance_scale": 4.0, "seed": 0, "negative_prompt": "",
}  # fmt: skip
SCORING = {"judge": "toy (embedded)", "class_prompt": "a photo of a cup", "num_class_images": 2}


@pytest.fixture
def graph(toy_graph, new_seed):
    """Builds a training of six steps with previews, as node 3. Its chart is saved, and its best
    step is sampled."""

    def build(scoring, **settings):
        train = {"preset.steps": 6, "seed": new_seed, "name": f"scored-{new_seed}", **settings}
        graph = toy_graph(preview_settings=["6", 0], **train)
        graph["6"] = {"class_type": "DreamBoothPreviewSettings", "inputs": {**PREVIEW, **scoring}}
        graph["4"]["inputs"]["model_source"] = ["3", 5]
        inputs = {"images": ["3", 2], "filename_prefix": f"curve-{new_seed}"}
        graph["7"] = {"class_type": "SaveImage", "inputs": inputs}
        return graph

    return build


def height(comfyui, outcome):
    (file,) = outcome.outputs("7")["images"]
    with Image.open(comfyui.base / "output" / file["filename"]) as image:
        assert np.asarray(image).std() > 10
        return image.height


def test_previews_are_scored_and_the_best_step_is_passed_on(comfyui, graph, new_seed):
    # At this learning rate the class is lost after two steps, so the last step is not the best.
    prompt = graph(SCORING, **{"preset.learning_rate": 3e-3})
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    scored = [text for text in outcome.texts if text.startswith("Scored step ")]
    assert [text.split(":")[0] for text in scored] == [f"Scored step {n}" for n in (0, 2, 4, 6)]
    assert scored[0] == (
        "Scored step 0: 0 % learned, 100 % of prompts kept, 100 % of class kept, balance 0.00"
    )
    assert height(comfyui, outcome) == 750
    folder = comfyui.base / "models" / "checkpoints" / "dreambooth"
    assert (folder / f"scored-{new_seed}.safetensors").exists()
    balances = [float(text.rsplit(" ", 1)[1]) for text in scored]
    best_is_last = balances.index(max(balances)) in (0, 3)
    assert (folder / f"scored-{new_seed}-best.safetensors").exists() != best_is_last
    # Queued again, it reuses its scores and its best step, and does not train.
    prompt["4"]["inputs"]["steps"] = 1
    prompt["3"]["inputs"]["on_existing"] = "resume"
    again = comfyui.run(prompt)
    assert again.end == "execution_success", again.error
    assert again.steps == []
    assert height(comfyui, again) == 750


def test_without_a_judge_the_best_step_is_the_last(comfyui, graph, new_seed):
    outcome = comfyui.run(graph({}))
    assert outcome.end == "execution_success", outcome.error
    assert not [text for text in outcome.texts if text.startswith("Scored")]
    assert height(comfyui, outcome) == 450
    folder = comfyui.base / "models" / "checkpoints" / "dreambooth"
    assert not (folder / f"scored-{new_seed}-best.safetensors").exists()
