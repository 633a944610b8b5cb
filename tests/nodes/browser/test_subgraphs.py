"""Training inside a subgraph, in a browser: the user's own one, and the blueprint of the pack."""

import itertools
import json

import pytest

from tests.nodes.browser.blueprint import SHORTEN, place_blueprint
from tests.nodes.browser.conftest import TRAIN, toy_workflow

pytestmark = pytest.mark.xdist_group("comfyui")

LONG = 100_000
"""Steps of a run that a test ends."""
CONVERT = """id => {
    const { node } = app.canvas.graph.convertToSubgraph(new Set([app.rootGraph.getNodeById(id)]))
    return [String(node.id), String(node.subgraph.nodes[0].id)]
}"""
"""Does what the page's button for selected nodes does. Returns the ids of the subgraph's node and
of the node in it."""
ENTER = """id => {
    const node = app.rootGraph.getNodeById(id)
    app.canvas.openSubgraph(node.subgraph, node)
}"""
IS_LAST = """id => app.rootGraph.getNodeById(id).widgets.at(-1).name == 'dreambooth_run'"""
PICTURES = """new Set([...document.querySelectorAll("img[src*='teach_']")]
    .filter(image => image.checkVisibility() && image.naturalWidth > 0)
    .map(image => new URL(image.src).searchParams.get('filename')))"""
"""The files of the pictures that are seen."""

_seeds = itertools.count(7000)


def finish(panel):
    """Press the button by the keyboard."""
    panel.get_by_role("button", name="Finish now and keep").press("Enter")


def saved(tab):
    """The workflow as the page saves it."""
    return json.loads(tab.page.evaluate("JSON.stringify(app.rootGraph.serialize())"))


# --- A subgraph of the user ---------------------------------------------------------------------


def test_a_training_node_is_followed_inside_and_outside_of_its_subgraph(tab):
    tab.load(toy_workflow(steps=LONG, every=LONG))
    outer, inner = tab.page.evaluate(CONVERT, TRAIN)
    tab.page.wait_for_function(IS_LAST, arg=outer)
    tab.run()
    tab.wait_for_points(3, outer)
    assert tab.panel(outer).is_visible()
    assert tab.panel(outer).locator(".status").text_content().startswith("Step ")
    tab.page.evaluate(ENTER, outer)
    tab.panel(f"{outer}:{inner}").wait_for()
    tab.wait_for_points(tab.points(f"{outer}:{inner}"), f"{outer}:{inner}")
    finish(tab.panel(f"{outer}:{inner}"))
    tab.wait_for_state("finished", f"{outer}:{inner}")
    tab.page.evaluate("app.canvas.setGraph(app.rootGraph)")
    tab.wait_for_state("finished", outer).wait_for()
    assert "dreambooth_run" not in str(saved(tab))


def test_a_subgraph_in_a_subgraph_shows_the_run_too(tab):
    tab.load(toy_workflow(steps=3))
    middle, inner = tab.page.evaluate(CONVERT, TRAIN)
    outer, middle = tab.page.evaluate(CONVERT, middle)
    tab.run()
    tab.wait_for_state("finished", outer).wait_for()
    tab.page.evaluate(ENTER, outer)
    tab.wait_for_state("finished", f"{outer}:{middle}").wait_for()


def test_a_reloaded_page_shows_the_run_on_the_subgraph(tab):
    tab.load(toy_workflow(steps=20, every=10))
    outer, _ = tab.page.evaluate(CONVERT, TRAIN)
    tab.run()
    tab.wait_for_state("finished", outer)
    workflow = saved(tab)
    tab.reload()
    tab.load(workflow)
    panel = tab.wait_for_state("finished", outer)
    assert tab.points(outer) == 20
    assert panel.locator(".previews h4").first.text_content() == "Step 20"
    assert tab.page.evaluate(IS_LAST, outer)


# --- The blueprint ------------------------------------------------------------------------------


def test_the_blueprint_is_found_placed_by_a_click_and_runs_to_the_pictures(tab):
    number = place_blueprint(tab)
    tab.page.wait_for_function(IS_LAST, arg=number)
    tab.page.evaluate(SHORTEN, [number, next(_seeds)])
    tab.run()
    tab.wait_for_points(3, number)
    assert tab.panel(number).is_visible()
    finish(tab.panel(number))
    panel = tab.wait_for_state("finished", number)
    assert panel.locator("code").text_content().startswith("dreambooth/sks-cup")
    tab.page.wait_for_function(f"({PICTURES}).size == 4")


def test_words_outside_of_the_blueprint_reach_the_prompts_inside(tab):
    number = place_blueprint(tab)
    tab.page.evaluate(
        """id => {
            for (const widget of app.rootGraph.getNodeById(id).widgets) {
                if (widget.name == 'rare word') widget.value = 'zwx'
                if (widget.name == 'what it is') widget.value = 'house'
                if (widget.name == 'preset') widget.value = 'face'
            }
        }""",
        number,
    )
    sent = tab.page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))")
    inputs = {node["_meta"]["title"]: node["inputs"] for node in json.loads(sent).values()}
    assert inputs["Rare word"]["value"] == "zwx"
    assert inputs["What it is"]["value"] == "house"
    assert inputs["DreamBooth Train"]["preset"] == "face"


def test_a_result_that_comfyui_kept_is_shown_in_another_workflow(tab):
    workflow = toy_workflow(steps=3)
    tab.load(workflow)
    tab.run()
    tab.wait_for_state("finished")
    tab.load({**workflow, "id": toy_workflow()["id"]})
    assert tab.panel().count() == 0
    tab.run()
    tab.wait_for_state("finished")
