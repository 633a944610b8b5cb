"""The panel on a training node, in a browser: what it shows of a run, and its buttons."""

import copy

import pytest

from tests.nodes.browser.conftest import PHOTOS, TRAIN, toy_workflow
from tests.nodes.browser.panels import (
    LONG,
    are_loaded,
    message,
    picture_steps,
    press,
    status,
    steps_made,
)

pytestmark = pytest.mark.xdist_group("comfyui")


# --- What is shown ------------------------------------------------------------------------------


def test_a_run_is_shown_from_the_first_step_to_the_written_file(tab):
    tab.load(toy_workflow(steps=40, every=10))
    tab.run()
    tab.wait_for_state("training")
    tab.wait_for_points(3)
    panel = tab.wait_for_state("finished")
    assert status(panel) == "Finished: 40 steps"
    assert tab.points() == 40
    assert picture_steps(panel) == [
        "Step 40", "Base model, from the same noise", "Step 30", "Step 20",
    ]  # fmt: skip
    press(panel, "Show earlier steps (1)")
    assert picture_steps(panel)[-1] == "Step 10"
    assert are_loaded(panel.locator(".previews img"))
    captions = panel.locator(".previews figcaption").all_text_contents()
    assert captions[0] == "a photo of sks cup on the beach"
    assert panel.locator("code").text_content().startswith("dreambooth/browser-")
    # Menus have the file without a reload.
    tab.page.wait_for_function(
        "name => app.rootGraph.nodes.some(node => node.comfyClass === 'DreamBoothLoadBaseModel' &&"
        " node.widgets[0].options.values.includes(name))",
        arg=panel.locator("code").text_content(),
    )
    # The workflow continues: its last node has the pictures.
    tab.page.wait_for_function("Object.keys(app.nodeOutputs).includes('11')")


def test_nothing_of_the_panel_is_written_into_the_workflow(tab):
    workflow = toy_workflow(steps=3)
    before = [node["widgets_values"] for node in workflow["nodes"] if node["id"] == TRAIN]
    tab.load(workflow)
    tab.run()
    tab.wait_for_state("finished")
    saved = tab.page.evaluate("app.rootGraph.serialize()")
    (train,) = [node for node in saved["nodes"] if node["id"] == TRAIN]
    assert [train["widgets_values"]] == before
    assert "dreambooth_run" not in str(saved)


def test_a_reload_in_the_middle_loses_nothing_and_other_tabs_show_the_same(open_tab):
    first = open_tab()
    first.load(toy_workflow(steps=LONG, every=20))
    first.run()
    first.wait_for_points(10)
    points = first.points()
    first.reload()
    first.wait_for_state("training")
    assert first.points() >= points
    first.wait_for_points(2 * points)
    second = open_tab()
    second.load(first.page.evaluate("app.rootGraph.serialize()"))
    panel = second.wait_for_state("training")
    assert second.points() > points
    press(panel, "Finish now and keep")
    for tab in (first, second):
        tab.wait_for_state("finished")
        assert tab.errors == []


def test_another_workflow_does_not_show_the_run(tab):
    tab.load(toy_workflow(steps=3))
    tab.run()
    tab.wait_for_state("finished")
    tab.load(toy_workflow(steps=3))
    panels = tab.page.locator(".dreambooth-panel")
    assert panels.evaluate_all("all => all.map(each => each.dataset.state ?? '')") == [""]


# --- Buttons ------------------------------------------------------------------------------------


def test_finishing_keeps_the_model_and_says_how_to_continue(tab):
    tab.load(toy_workflow(steps=LONG, every=LONG, keep_state=True))
    tab.run()
    tab.wait_for_points(10)
    press(tab.panel(), "Finish now and keep")
    panel = tab.wait_for_state("finished")
    made = steps_made(panel)
    assert status(panel) == f"Finished early: {made} of {LONG} steps"
    assert message(panel) == (
        f"Finished early, after step {made} of {LONG}. Set on_existing to resume to continue from "
        "there."
    )
    assert panel.locator(".written").is_visible()
    assert picture_steps(panel)[0] == f"Step {made}"


def test_stopping_says_how_to_continue_and_the_next_run_does(tab):
    tab.load(toy_workflow(steps=LONG, every=LONG))
    tab.run()
    tab.wait_for_points(10)
    press(tab.panel(), "Stop")
    panel = tab.wait_for_state("stopped")
    made = steps_made(panel)
    assert message(panel) == (
        f"Stopped after step {made}. Run the same again to resume from there."
    )
    assert panel.get_by_role("button", name="Stop").count() == 0
    points = tab.points()
    tab.run()
    panel = tab.wait_for_state("training")
    tab.wait_for_points(points)
    assert steps_made(panel) >= made
    press(panel, "Finish now and keep")
    tab.wait_for_state("finished")


def test_previews_and_saves_are_made_when_asked_for(tab, comfyui):
    workflow = toy_workflow(steps=LONG, every=LONG)
    tab.load(workflow)
    tab.run()
    tab.wait_for_points(3)
    panel = tab.panel()
    press(panel, "Preview now")
    panel.locator("h4", has_text="Step ").first.wait_for(state="attached")
    press(panel, "Save now")
    panel.locator("code", has_text="-step").wait_for(state="attached")
    name = panel.locator("code").text_content()
    assert (comfyui.base / "models" / "checkpoints" / name).is_file()
    press(panel, "Finish now and keep")
    tab.wait_for_state("finished")


def test_a_preview_is_enlarged_and_compared_by_keyboard(tab):
    tab.load(toy_workflow(steps=20, every=10))
    tab.run()
    panel = tab.wait_for_state("finished")
    picture = panel.get_by_role("button", name="Step 20: a photo of sks cup at night")
    picture.focus()
    tab.page.keyboard.press("Enter")
    window = tab.page.get_by_role("dialog")
    assert are_loaded(window.locator("img:not([hidden])"))
    assert window.locator("img:not([hidden])").count() == 1
    window.get_by_label("Compare with").select_option("Base model")
    assert window.locator("img:not([hidden])").count() == 2
    assert are_loaded(window.locator("img"))
    names = window.locator("img").evaluate_all("all => all.map(each => each.alt)")
    assert names == [
        "Step 20: a photo of sks cup at night", "Base model: a photo of sks cup at night",
    ]  # fmt: skip
    tab.page.keyboard.press("Escape")
    assert window.count() == 0
    assert picture.evaluate("each => each === document.activeElement")


# --- Runs of before, and errors -----------------------------------------------------------------


def test_a_finished_run_is_shown_again_after_the_server_was_restarted(tab, comfyui):
    tab.load(toy_workflow(steps=20, every=10))
    tab.run()
    tab.wait_for_state("finished")
    pictures = picture_steps(tab.panel())
    comfyui.restart()
    tab.reload()
    tab.run()
    panel = tab.wait_for_state("found")
    assert status(panel) == "Trained before: 20 steps"
    assert tab.points() == 20
    assert picture_steps(panel) == pictures
    assert are_loaded(panel.locator(".previews img"))
    assert panel.locator("code").text_content().startswith("dreambooth/browser-")


def test_an_error_is_on_the_node(tab):
    workflow = toy_workflow()
    (train,) = [node for node in workflow["nodes"] if node["id"] == TRAIN]
    train["widgets_values"][9] = "../cup"
    tab.load(workflow)
    tab.run()
    panel = tab.wait_for_state("failed")
    assert status(panel) == "Failed"
    assert message(panel) == (
        "name must be a plain file name, got '../cup': it leads out of its folder."
    )


def test_an_error_of_another_node_is_on_that_node_until_the_next_run(tab):
    workflow = toy_workflow(steps=3)
    (photos,) = [node for node in workflow["nodes"] if node["id"] == PHOTOS]
    before = photos["widgets_values"]
    photos["widgets_values"] = ["none, only the images below", *before[1:]]
    tab.load(workflow)
    tab.run()
    notice = tab.page.get_by_role("alert").filter(has_text="no images are connected")
    notice.wait_for()
    assert notice.text_content() == (
        "folder is 'none, only the images below', and no images are connected. Choose a folder, or "
        "connect an image."
    )
    saved = tab.page.evaluate("app.rootGraph.serialize()")
    (photos,) = [node for node in saved["nodes"] if node["id"] == PHOTOS]
    assert photos["widgets_values"] == ["none, only the images below", *before[1:]]
    tab.page.evaluate(
        "([id, value]) => { app.rootGraph.getNodeById(id).widgets[0].value = value }",
        [PHOTOS, before[0]],
    )
    tab.run()
    tab.wait_for_state("finished")
    assert notice.count() == 0


def test_two_training_nodes_show_their_own_runs(tab):
    workflow = toy_workflow(steps=8, every=LONG)
    (train,) = [node for node in workflow["nodes"] if node["id"] == TRAIN]
    other = copy.deepcopy(train)
    other["id"], other["outputs"] = 60, [{**each, "links": None} for each in other["outputs"]]
    other["pos"] = [860, 1300]
    other["widgets_values"][2], other["widgets_values"][9] = 5, "other"
    for entry in other["inputs"]:
        if entry.get("link") is not None:
            source = next(link for link in workflow["links"] if link[0] == entry["link"])
            number = workflow["last_link_id"] = workflow["last_link_id"] + 1
            workflow["links"].append([number, source[1], source[2], 60, source[4], source[5]])
            entry["link"] = number
    workflow["nodes"].append(other)
    tab.load(workflow)
    tab.run()
    for node, steps in ((TRAIN, 8), (60, 5)):
        panel = tab.wait_for_state("finished", node)
        assert status(panel) == f"Finished: {steps} steps"
        assert tab.points(node) == steps


def test_a_node_in_a_subgraph_shows_its_run(tab):
    tab.load(toy_workflow(steps=8, every=LONG))
    tab.page.evaluate(
        "id => { const node = app.rootGraph.getNodeById(id);"
        " app.canvas.graph.convertToSubgraph(new Set([node])) }",
        TRAIN,
    )
    tab.run()
    tab.page.wait_for_function(
        "[...document.querySelectorAll('.dreambooth-panel')].length > 0 || true"
    )
    path = tab.page.evaluate(
        "() => { const outer = app.rootGraph.nodes.find(each => each.subgraph);"
        " return `${outer.id}:${outer.subgraph.nodes.find(each => each.comfyClass).id}` }"
    )
    tab.page.evaluate(
        "() => app.canvas.setGraph(app.rootGraph.nodes.find(each => each.subgraph).subgraph)"
    )
    panel = tab.wait_for_state("finished", path)
    assert status(panel) == "Finished: 8 steps"
    assert tab.points(path) == 8
