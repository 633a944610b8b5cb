"""Photos on the node of a subgraph with a node that loads them, in a browser."""

import json
import secrets

import pytest

from tests.nodes.browser.blueprint import SHORTEN, place_blueprint
from tests.nodes.browser.conftest import toy_workflow
from tests.nodes.browser.dropping import (
    confirm,
    drop,
    names_in,
    panel_of,
    photos_panel,
    place_of,
)

pytestmark = pytest.mark.xdist_group("comfyui")

TOY = "toy cup photos (embedded)"
PROMOTE = """async ([widget, name]) => {
    const [node] = app.rootGraph.nodes.filter(each =>
        each.subgraph || each.comfyClass == 'DreamBoothLoadInstanceImages')
    const { node: outer } = app.canvas.graph.convertToSubgraph(new Set([node]))
    const inner = outer.subgraph.nodes[0]
    const input = outer.subgraph.addInput(name, 'COMBO')
    input.connect(inner.inputs.find(each => each.name == widget), inner)
    return String(outer.id)
}"""
"""Converts the node with the photos to a subgraph, and shows a widget on the subgraph's node, as
its menu does. Returns the node's id."""
ENTER = """id => {
    const node = app.rootGraph.getNodeById(id)
    app.canvas.openSubgraph(node.subgraph, node)
}"""


def folder_sent(tab):
    """The folder that a run of this page would load."""
    sent = tab.page.evaluate("app.graphToPrompt().then(prompt => JSON.stringify(prompt.output))")
    (node,) = [each for each in json.loads(sent).values() if "folder" in each["inputs"]]
    return node["inputs"]["folder"]


@pytest.fixture
def stored(comfyui, taken):
    """Photos in ComfyUI's input folder; the name of their folder in menus."""
    name = f"cup-{secrets.token_hex(3)}"
    (comfyui.base / "input" / name).mkdir()
    for file in taken.iterdir():
        (comfyui.base / "input" / name / file.name).write_bytes(file.read_bytes())
    return f"input/{name}"


@pytest.mark.parametrize("spot", ["title", "panel"])
def test_photos_dropped_on_the_blueprint_are_added_and_chosen(tab, comfyui, taken, spot):
    number = place_blueprint(tab)
    photos_panel(tab).locator(".photos li").first.wait_for()
    assert photos_panel(tab).locator(".status").text_content() == "6 photos"
    x, y = place_of(tab, number)
    if spot == "panel":
        box = photos_panel(tab).bounding_box()
        x, y = box["x"] + 20, box["y"] + 20
    drop(tab, [taken], x, y)
    assert confirm(tab) == taken.name
    folder = f"input/{taken.name.replace(':', '-')}"
    panel = panel_of(tab, folder)
    assert names_in(panel) == [f"cup {number}.png" for number in range(4)]
    hint = panel.get_by_label("Caption of cup 0.png").get_attribute("placeholder")
    assert hint == "No caption file: the prompt is used"
    assert len(list((comfyui.base / folder).glob("*.png"))) == 4
    assert folder_sent(tab) == folder
    assert tab.page.evaluate("app.rootGraph.nodes.length") == 1


def test_files_chosen_on_the_blueprint_are_added(tab, taken):
    place_blueprint(tab)
    field = photos_panel(tab).locator("input[type=file]:not([webkitdirectory])")
    field.set_input_files([taken / "cup 0.png", taken / "cup 1.png"])
    name = f"set-{secrets.token_hex(3)}"
    confirm(tab, name)
    assert names_in(panel_of(tab, f"input/{name}")) == ["cup 0.png", "cup 1.png"]
    assert folder_sent(tab) == f"input/{name}"


def test_the_blueprint_shows_the_folder_that_is_chosen_in_its_menu(stored, tab, mode):
    page = tab.page
    number = place_blueprint(tab)
    # The page forgets widgets of such nodes that nobody keeps.
    page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
    place_of(tab, number)
    if mode == "classic":
        x, y = page.evaluate(
            """id => {
                const node = app.rootGraph.getNodeById(id)
                const { left, top } = app.canvas.canvas.getBoundingClientRect()
                const { offset } = app.canvas.ds
                return [left + node.pos[0] + 200 + offset[0],
                        top + node.pos[1] + node.widgets[0].y + 10 + offset[1]]
            }""",
            number,
        )
        page.mouse.click(x, y)
    else:
        page.get_by_text(TOY).first.click()
    page.get_by_text(stored).last.click()
    assert panel_of(tab, stored).locator(".status").text_content() == "4 photos"
    assert folder_sent(tab) == stored


def test_a_subgraph_of_the_user_shows_the_photos_of_a_widget_that_is_shown_on_it(tab, taken):
    tab.load(toy_workflow())
    outer = tab.page.evaluate(PROMOTE, ["folder", "my folder"])
    photos_panel(tab).locator(".photos li").first.wait_for()
    x, y = place_of(tab, outer)
    drop(tab, [taken], x, y)
    confirm(tab)
    panel_of(tab, f"input/{taken.name.replace(':', '-')}")
    saved = tab.page.evaluate("JSON.stringify(app.rootGraph.serialize())")
    assert "dreambooth_photos" not in saved
    # Its prompt is known, as it is set in the node inside.
    hint = photos_panel(tab).get_by_label("Caption of cup 0.png").get_attribute("placeholder")
    assert hint == "No caption file: “a photo of sks cup”"


def test_a_subgraph_around_a_subgraph_shows_the_photos_too(tab, stored):
    tab.load(toy_workflow())
    tab.page.evaluate(PROMOTE, ["folder", "my folder"])
    tab.page.evaluate(PROMOTE, ["my folder", "outermost"])
    (number,) = tab.page.evaluate(
        "app.rootGraph.nodes.filter(each => each.subgraph).map(each => each.id)"
    )
    place_of(tab, number)
    tab.page.evaluate(
        "([id, value]) => { const [widget] = app.rootGraph.getNodeById(id).widgets;"
        " widget.value = value; widget.callback(value) }",
        [number, stored],
    )
    assert names_in(panel_of(tab, stored)) == [f"cup {number}.png" for number in range(4)]
    assert folder_sent(tab) == stored


def test_the_node_inside_says_that_its_folder_comes_from_outside(tab, taken):
    number = place_blueprint(tab)
    tab.page.evaluate(ENTER, number)
    tab.page.wait_for_function("id => app.canvas.graph.nodes.length > 1", arg=number)
    panel = photos_panel(tab).filter(has_text="This node gets its folder from another node.")
    panel.wait_for()
    assert not panel.get_by_role("button", name="Add photos").is_visible()
    box = panel.bounding_box()
    before = tab.page.evaluate("app.canvas.graph.nodes.length")
    drop(tab, [taken], box["x"] + 20, box["y"] + 20)
    panel.get_by_text(
        "Photos cannot be added here, but where the folder is chosen."
    ).first.wait_for()
    assert tab.page.evaluate("app.canvas.graph.nodes.length") == before


def test_an_error_inside_of_the_blueprint_is_on_its_node(tab):
    number = place_blueprint(tab)
    tab.page.evaluate(SHORTEN, [number, 1])
    tab.page.evaluate(
        "id => { const [widget] = app.rootGraph.getNodeById(id).widgets;"
        " widget.value = 'none, only the images below' }",
        number,
    )
    tab.run()
    notice = tab.page.get_by_role("alert").filter(has_text="no images are connected")
    notice.locator("visible=true").wait_for()
    last = tab.page.evaluate("id => app.rootGraph.getNodeById(id).widgets.at(-1).name", number)
    assert last == "dreambooth_notice"
