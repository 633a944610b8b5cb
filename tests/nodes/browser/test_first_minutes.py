"""From an empty page to a picture, by clicks alone."""

import pytest

from tests.nodes.browser.conftest import TEMPLATE, TRAIN
from tests.nodes.browser.panels import press, status
from tests.nodes.test_example_workflows import NAMES, READABLE, read

pytestmark = pytest.mark.xdist_group("comfyui")

SAVED = "11"
"""The id of Save Image in the template."""
SHORTER = {
    4: {"images.num_images": 4, "images.steps": 2},
    5: {"every": 5, "steps": 2},
    TRAIN: {"preset.steps": 10},
    8: {"steps": 2},
}
"""Widgets of the template by node, so that its training is short."""


def set_widgets(tab, values):
    tab.page.evaluate(
        "values => { for (const [id, widgets] of Object.entries(values))"
        "  for (const each of app.rootGraph.nodes.find(node => String(node.id) === id).widgets)"
        "    if (each.name in widgets) each.value = widgets[each.name] }",
        {str(node): widgets for node, widgets in values.items()},
    )


def test_a_template_trains_and_draws_after_four_clicks(tab, new_seed):
    page = tab.page
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("ComfyUI-DreamBooth", exact=True).click()
    page.get_by_test_id(f"template-workflow-{TEMPLATE.stem}").click()
    page.wait_for_function("id => app.rootGraph.id === id", arg=read(TEMPLATE.stem)["id"])
    set_widgets(tab, SHORTER)
    set_widgets(tab, {TRAIN: {"seed": 10_000 + new_seed}})
    tab.run()
    page.wait_for_function("id => app.nodeOutputs[id]?.images?.length === 4", arg=SAVED)
    width = page.evaluate(
        "async id => { const [file] = app.nodeOutputs[id].images; const image = new Image();"
        " image.src = `/view?${new URLSearchParams(file)}`; await image.decode();"
        " return image.naturalWidth }",
        SAVED,
    )
    assert width == 64
    assert status(tab.panel()) == "Finished: 10 steps"


def test_templates_open_with_the_sizes_of_their_nodes_and_readable(tab):
    """The page must not enlarge nodes over others, nor shrink a training node, whose run would then
    enlarge it."""
    for name in NAMES:
        workflow = read(name)
        # The page keeps the size of nodes that are collapsed elsewhere.
        sizes = {
            str(node["id"]): node["size"]
            for node in workflow["nodes"]
            if not node["flags"].get("collapsed")
        }
        tab.load(workflow)
        tab.page.wait_for_function(
            "sizes => Object.entries(sizes).every(([id, size]) => {"
            "  const found = app.rootGraph.nodes.find(node => String(node.id) === id)?.size;"
            "  return found && Math.abs(found[0] - size[0]) < 2 && Math.abs(found[1] - size[1]) < 2"
            "})",
            arg=sizes,
        )
        assert tab.page.evaluate("app.canvas.ds.scale") >= READABLE, name


def test_a_workflow_from_before_the_widget_vram_keeps_its_meaning(tab):
    workflow = read(TEMPLATE.stem)
    (train,) = [node for node in workflow["nodes"] if node["id"] == TRAIN]
    vram = "id => app.rootGraph.getNodeById(id).widgets.find(each => each.name == 'vram').value"
    tab.load(workflow)
    position = tab.page.evaluate(
        "id => app.rootGraph.getNodeById(id).widgets.filter(each => each.serialize !== false)"
        ".findIndex(each => each.name === 'vram')",
        TRAIN,
    )
    train["widgets_values"][position] = "auto"
    tab.load({**workflow, "id": "6d1f1a52-3d2e-4c0e-9d55-000000000001"})
    assert tab.page.evaluate(vram, TRAIN) == "auto"
    del train["widgets_values"][position:]
    tab.load({**workflow, "id": "6d1f1a52-3d2e-4c0e-9d55-000000000002"})
    assert tab.page.evaluate(vram, TRAIN) == "off"


def test_a_graph_from_the_search_box_trains_with_its_defaults(tab, new_seed):
    page = tab.page
    page.get_by_role("button", name="Create a new blank workflow").click()
    page.wait_for_function("app.graph.nodes.length === 0")
    for number, words in enumerate(("stable diffusion 1.5", "training photos", "finetune face")):
        place = 200 + 400 * number, 400
        page.mouse.dblclick(*place)
        box = page.locator("input:focus")
        box.fill(words)
        page.get_by_test_id("result-item").first.wait_for()
        box.press("Enter")
        page.wait_for_function("count => app.graph.nodes.length === count", arg=number + 1)
        box.wait_for(state="hidden")
        # The new node follows the mouse until it is clicked.
        page.mouse.move(place[0], place[1] + 40, steps=4)
        page.mouse.click(place[0], place[1] + 40)
        page.wait_for_function("!app.graph.nodes.some(node => node.flags?.ghost)")
    types = page.evaluate("app.graph.nodes.map(node => node.type)")
    assert types == ["DreamBoothLoadBaseModel", "DreamBoothLoadInstanceImages", "DreamBoothTrain"]
    train = page.evaluate(
        "() => { const [model, photos, train] = app.graph.nodes; model.connect(0, train, 0);"
        " photos.connect(0, train, 1); return String(train.id) }"
    )
    set_widgets(tab, {train: {"seed": 20_000 + new_seed}})  # so that no earlier run is found
    tab.run()
    tab.wait_for_state("training", train)
    press(tab.panel(train), "Finish now and keep")
    panel = tab.wait_for_state("finished", train)
    assert status(panel).startswith("Finished early:")
