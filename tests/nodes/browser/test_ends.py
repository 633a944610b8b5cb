"""How runs end, wait for others, and continue, as the page shows it."""

import pytest

from tests.nodes.browser.conftest import TRAIN, toy_workflow
from tests.nodes.browser.panels import LONG, message, press, status, steps_made

pytestmark = pytest.mark.xdist_group("comfyui")


def train_node(workflow):
    (node,) = [node for node in workflow["nodes"] if node["id"] == TRAIN]
    return node


def last_views(comfyui, count):
    return comfyui.get("/dreambooth/live")["views"][-count:]


def test_comfyuis_own_cancel_says_how_to_continue_and_the_same_run_does(tab, comfyui):
    tab.load(toy_workflow(steps=LONG, every=LONG))
    tab.run()
    tab.wait_for_points(10)
    tab.page.get_by_role("button", name="Cancel current run").click()
    panel = tab.wait_for_state("stopped")
    made = steps_made(panel)
    assert message(panel) == (
        f"Stopped after step {made}. Run the same again to resume from there."
    )
    tab.run()
    panel = tab.wait_for_state("training")
    tab.wait_for_points(made)
    press(panel, "Stop")
    panel = tab.wait_for_state("stopped")
    assert steps_made(panel) > made
    before, after = last_views(comfyui, 2)
    assert before["run"] == after["run"]
    assert before["prompt"] != after["prompt"]


def test_a_run_can_be_stopped_after_a_reload(tab):
    tab.load(toy_workflow(steps=LONG, every=LONG))
    tab.run()
    tab.wait_for_points(3)
    tab.reload()
    press(tab.wait_for_state("training"), "Stop")
    assert message(tab.wait_for_state("stopped")).startswith("Stopped after step ")


def test_a_queued_run_is_shown_after_the_one_before_it(tab, comfyui):
    workflow = toy_workflow(steps=LONG, every=LONG)
    tab.load(workflow)
    tab.page.evaluate(
        "window.prompts = new Set(); comfyAPI.api.api.addEventListener('dreambooth.live',"
        " event => prompts.add(event.detail.prompt)); true"
    )
    tab.run()
    tab.wait_for_points(10)
    tab.page.evaluate(
        "id => { const node = app.rootGraph.nodes.find(each => String(each.id) === id);"
        " node.widgets.find(each => each.name === 'seed').value += 100000 }",
        str(TRAIN),
    )
    with tab.page.expect_response(lambda answer: answer.url.endswith("/prompt")):
        tab.run()
    panel = tab.wait_for_state("training")
    assert comfyui.get("/prompt")["exec_info"]["queue_remaining"] == 2
    (running,) = last_views(comfyui, 1)
    press(panel, "Finish now and keep")
    tab.page.wait_for_function("prompts.size === 2")
    panel = tab.wait_for_state("training")
    finished, queued = last_views(comfyui, 2)
    assert (finished["prompt"], finished["state"]) == (running["prompt"], "finished")
    assert queued["run"] != finished["run"]
    press(panel, "Stop")
    panel = tab.wait_for_state("stopped")
    (stopped,) = last_views(comfyui, 1)
    assert status(panel) == f"Stopped: {stopped['step']} of {LONG} steps"


@pytest.mark.parametrize(
    ("keep_state", "advice"),
    [
        (True, "Set on_existing to resume to continue from there."),
        (False, "It kept no state to continue from, because keep_state was off. Set on_existing "
                "to retrain to start over."),
    ],
    ids=["state kept", "state not kept"],
)  # fmt: skip
def test_a_run_that_was_finished_early_says_so_when_it_is_found(tab, comfyui, keep_state, advice):
    tab.load(toy_workflow(steps=300, every=LONG, keep_state=keep_state))
    tab.run()
    tab.wait_for_points(10)
    press(tab.panel(), "Finish now and keep")
    made = steps_made(tab.wait_for_state("finished"))
    comfyui.restart()
    tab.reload()
    tab.run()
    panel = tab.wait_for_state("found")
    assert status(panel) == f"Trained before: {made} of 300 steps"
    assert message(panel) == f"Finished early, after step {made} of 300. {advice}"


@pytest.mark.parametrize("is_secure", [True, False], ids=["local page", "remote page"])
def test_the_name_of_the_written_file_is_copied(tab, comfyui, is_secure):
    tab.load(toy_workflow(steps=3, every=LONG))
    tab.run()
    panel = tab.wait_for_state("finished")
    tab.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.evaluate("window.clipboard = navigator.clipboard")
    if not is_secure:
        tab.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    press(panel, "Copy name")
    panel.get_by_role("button", name="Copied").wait_for()
    copied = tab.page.evaluate("clipboard.readText()")
    assert copied == panel.locator("code").text_content()
    assert (comfyui.base / "models" / "checkpoints" / copied).is_file()


def test_late_messages_about_an_earlier_run_do_not_replace_a_newer_one(tab):
    workflow = toy_workflow(steps=3)
    tab.load(workflow)
    views = [
        {"prompt": "earlier", "version": 1, "state": "training", "step": 2},
        {"prompt": "newer", "version": 1, "state": "preparing", "step": 0},
        {"prompt": "earlier", "version": 2, "state": "finished", "step": 3},
    ]
    common = {"node": str(TRAIN), "workflow": workflow["id"], "total": 3, "activity": "",
              "seconds_left": None, "steps_per_second": None, "megabytes_taken": None,
              "megabytes_free": None, "scores": [], "previews": [], "lines": [], "message": "",
              "file": None}  # fmt: skip
    for view in views:
        tab.page.evaluate(
            "detail => { comfyAPI.api.api.dispatchCustomEvent('dreambooth.live', detail) }",
            {**common, **view},
        )
    assert status(tab.panel()) == "Preparing"
