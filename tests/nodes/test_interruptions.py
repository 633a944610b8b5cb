"""Runs in a real ComfyUI that were cancelled in each phase, or whose server was killed, resume."""

import re
import shutil
from pathlib import Path

import pytest

from trainer.toy import PHOTOS

pytestmark = pytest.mark.xdist_group("comfyui")

NUM_COPIES = 30
"""Copies of each sample photo, so that encoding is still running when the click arrives."""
STATE_EVERY = 100
"""Steps between saved states: the default, which the node does not change."""


@pytest.fixture
def many_photos(comfyui):
    """The menu name of a folder whose photos take a while to encode."""
    folder = comfyui.base / "input" / "many"
    folder.mkdir()
    for photo in PHOTOS.iterdir():
        for number in range(NUM_COPIES):
            shutil.copy(photo, folder / f"{number}-{photo.name}")
    yield "input/many"
    shutil.rmtree(folder)


def stop_at(comfyui, beginning: str):
    """Return a listener that presses the stop button at the first text with this beginning."""
    pressed = []

    def stop(outcome):
        if not pressed and any(text.startswith(beginning) for text in outcome.texts):
            pressed.append(beginning)
            comfyui.interrupt()

    return stop


def logged(server, pattern: str, since: int) -> list[str]:
    return re.findall(pattern, server.log.read_text()[since:])


def test_cancelled_while_photos_are_encoded(comfyui, toy_graph, many_photos, new_seed):
    graph = toy_graph(many_photos, seed=new_seed, name="encoding")
    outcome = comfyui.run(graph, on_message=stop_at(comfyui, "Encoding photos"))
    assert outcome.end == "execution_interrupted"
    assert outcome.steps == []
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert "encoding.safetensors" in comfyui.trained()


def test_class_images_drawn_before_cancelling_are_not_drawn_again(
    comfyui, toy_graph, priors_node, new_seed
):
    graph = toy_graph(seed=new_seed)
    graph["6"] = priors_node(6, seed=new_seed, steps=20, batch_size=1)
    graph["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
    outcome = comfyui.run(graph, on_message=stop_at(comfyui, "Class images 2/6"))
    assert outcome.end == "execution_interrupted"
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    first = next(text for text in outcome.texts if text.startswith("Class images"))
    assert int(first.split()[-1].split("/")[0]) >= 2


def test_training_resumes_from_the_last_state_after_the_server_was_killed(
    own_comfyui, toy_graph, new_seed
):
    server, graph = own_comfyui, toy_graph(seed=new_seed, **{"preset.steps": STATE_EVERY + 8})

    def kill(outcome):
        if outcome.steps and outcome.steps[-1] > STATE_EVERY:
            server.kill()

    with pytest.raises((ConnectionError, ValueError)):
        server.run(graph, on_message=kill)
    assert server.trained() == []
    since = len(server.log.read_text())
    server.start()
    outcome = server.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert logged(server, r"Resuming after step (\d+)\.", since) == [str(STATE_EVERY)]
    assert outcome.steps[0] > STATE_EVERY
    assert server.trained() == ["cup.safetensors"]
    assert list(Path(server.base).rglob("*.part")) == []


def test_cancelled_while_a_preview_is_drawn(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="preview", **{"preset.steps": 6})
    graph["3"]["inputs"]["preview_settings"] = ["7", 0]
    drawing = {
        "prompts": "a photo of sks cup", "every": 4, "scheduler": "DDIM", "steps": 200,
        "guidance_scale": 4.0, "negative_prompt": "", "seed": 0,
    }  # fmt: skip
    graph["7"] = {"class_type": "DreamBoothPreviewSettings", "inputs": drawing}
    since, pressed = len(comfyui.log.read_text()), []

    def stop(outcome):
        # Not while the base model's previews are drawn, before the first step.
        if outcome.steps and outcome.texts[-1].startswith("Sampling") and not pressed:
            pressed.append(outcome.steps[-1])
            comfyui.interrupt()

    outcome = comfyui.run(graph, on_message=stop)
    assert outcome.end == "execution_interrupted"
    assert logged(comfyui, r"Stopped after step (\d+)\.", since) == ["4"]
    drawing["steps"] = 2
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert logged(comfyui, r"Resuming after step (\d+)\.", since) == ["4"]
    assert outcome.steps[0] > 4


def test_more_steps_resume_from_a_kept_state(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="kept", keep_state=True)
    assert comfyui.run(graph).steps[-1] == 3
    since = len(comfyui.log.read_text())
    graph["3"]["inputs"]["preset.steps"] = 6
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.steps[0] > 3
    assert logged(comfyui, r"Resuming after step (\d+) of the run of 3 steps\.", since) == ["3"]
