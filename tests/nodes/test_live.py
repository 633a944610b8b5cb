"""What the training nodes send to pages, from a real ComfyUI."""

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

WORKFLOW = "6d1f1a52-3d2e-4c0e-9d55-6a3f0b1c2d02"


def live_events(outcome):
    return [data for kind, data in outcome.events if kind == "dreambooth.live"]


def views(comfyui, node="3"):
    return [view for view in comfyui.get("/dreambooth/live")["views"] if view["node"] == node]


def at_step(comfyui, act):
    """A listener that calls a function once steps are made."""
    done = []

    def listen(outcome):
        if outcome.steps and not done:
            done.append(act())

    return listen


def test_changes_are_sent_and_the_whole_is_kept_for_pages_that_open_later(
    comfyui, toy_graph, new_seed
):
    outcome = comfyui.run(toy_graph(seed=new_seed, name="live", **{"preset.steps": 30}))
    assert outcome.end == "execution_success", outcome.error
    view = views(comfyui)[-1]
    assert (view["state"], view["step"], view["total"]) == ("finished", 30, 30)
    assert [step for step, _, _ in view["points"]] == list(range(1, 31))
    first, *later = live_events(outcome)
    assert set(view) == set(first)
    assert [event["version"] for event in later] == list(range(2, len(later) + 2))
    for event in later:
        assert (event["node"], event["prompt"]) == ("3", view["prompt"])


def test_only_the_last_sixteen_views_are_kept(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="../many")
    for _ in range(17):
        assert comfyui.run(graph).end == "execution_error"
    assert len(comfyui.get("/dreambooth/live")["views"]) == 16


def test_an_error_and_warnings_are_in_the_view(comfyui, toy_graph, new_seed):
    outcome = comfyui.run(toy_graph(seed=new_seed, name="../cup"))
    view = views(comfyui)[-1]
    assert view["state"] == "failed"
    assert view["message"] == outcome.error[1]


def test_a_stopped_run_says_how_to_continue(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="live stop", **{"preset.steps": 3000})
    outcome = comfyui.run(graph, on_message=at_step(comfyui, comfyui.interrupt))
    assert outcome.end == "execution_interrupted"
    view = views(comfyui)[-1]
    assert view["state"] == "stopped"
    assert view["message"] == (
        f"Stopped after step {view['step']}. Run the same again to resume from there."
    )
    assert view["message"] not in str(view["lines"])
    # The points of the steps that were made before are there from the start.
    made = view["step"]
    outcome = comfyui.run(graph, on_message=at_step(comfyui, comfyui.interrupt))
    steps = [step for step, _, _ in views(comfyui)[-1]["points"]]
    assert steps[:made] == list(range(1, made + 1))


@pytest.mark.parametrize(
    ("keep_state", "advice"),
    [
        (True, "Set on_existing to resume to continue from there."),
        (
            False,
            "It kept no state to continue from, because keep_state was off. Set on_existing to "
            "retrain to start over.",
        ),
    ],
)
def test_a_run_that_was_finished_early_says_how_to_continue_also_when_found(
    comfyui, toy_graph, new_seed, keep_state, advice
):
    graph = toy_graph(
        seed=new_seed, name="live early", keep_state=keep_state, **{"preset.steps": 3000}
    )  # fmt: skip
    finish = at_step(comfyui, lambda: comfyui.post("/dreambooth/finish", {"node": "3"}))
    comfyui.run(graph, on_message=finish)
    early = views(comfyui)[-1]
    assert early["state"] == "finished"
    message = f"Finished early, after step {early['step']} of 3000. {advice}"
    assert early["message"] == message
    comfyui.run(toy_graph(seed=new_seed + 500, name="live other"))  # empties ComfyUI's cache
    comfyui.run(graph)
    found = views(comfyui)[-1]
    assert (found["state"], found["step"], found["message"]) == ("found", early["step"], message)


def test_previews_and_saves_can_be_requested(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="asked", **{"preset.steps": 3000})
    graph["3"]["inputs"]["preview_settings"] = ["7", 0]
    graph["7"] = {
        "class_type": "DreamBoothPreviewSettings",
        "inputs": {
            "prompts": "a photo of sks cup",
            "every": 3000,
            "steps": 2,
            "scheduler": "Euler",
        },
    }
    answers = []

    def ask(outcome):
        steps = {
            each["step"] for event in live_events(outcome) for each in event.get("previews", ())
        }
        if outcome.steps and not answers:
            answers.append(comfyui.post("/dreambooth/preview", {"node": "3"}))
        elif steps - {0} and len(answers) == 1:
            answers.append(comfyui.post("/dreambooth/save", {"node": "3"}))
        elif len(answers) == 2 and any("Wrote" in text for text in outcome.texts):
            answers.append(comfyui.post("/dreambooth/finish", {"node": "3"}))

    outcome = comfyui.run(graph, on_message=ask)
    assert outcome.end == "execution_success", outcome.error
    assert answers == [(200, {"node": "3"})] * 3
    assert len(views(comfyui)[-1]["previews"]) == 3, "base model, asked for, last step"
    assert any(name.startswith("asked-step") for name in comfyui.trained())


@pytest.mark.parametrize("route", ["preview", "save"])
def test_only_a_node_that_is_training_can_be_asked(comfyui, route):
    status, answer = comfyui.post(f"/dreambooth/{route}", {"node": "3"})
    assert status == 404
    assert answer["error"].startswith("No training is running on this node.")
