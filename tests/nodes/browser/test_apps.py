"""The apps of the pack, in a browser: opened from the templates, and used without a graph."""

import itertools

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

APP = "Teach a subject, toy model"
SHORTEN = """seed => {
    const set = (type, name, value) => {
        const node = app.rootGraph.nodes.find(each => each.type == 'DreamBooth' + type)
        node.widgets.find(widget => widget.name == name).value = value
    }
    set('GenerateClassPriors', 'images.num_images', 4)
    set('Train', 'seed', seed)
    set('PreviewSettings', 'steps', 2)
    set('SampleWithScheduler', 'steps', 2)
}"""
"""Makes the run another than those of before, and its drawing short."""

_seeds = itertools.count(8000)


def open_app(tab, name):
    page = tab.page
    tour = page.get_by_role("button", name="Skip", exact=True)
    page.add_locator_handler(tour, lambda button: button.click())
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_text("ComfyUI-DreamBooth").first.click()
    page.get_by_text(f"{name}.app", exact=True).click()
    widget(tab, "rare word").wait_for()


def widget(tab, label):
    return tab.page.get_by_test_id("app-mode-widget-item").filter(has_text=label)


def test_an_app_is_opened_from_the_templates_and_runs_to_the_pictures(tab):
    open_app(tab, APP)
    page = tab.page
    widget(tab, "training run").locator(".dreambooth-panel").wait_for()
    page.evaluate(SHORTEN, next(_seeds))
    widget(tab, "rare word").locator("input").fill("zwx")
    page.get_by_role("button", name="Run", exact=True).click()
    panel = page.locator(".dreambooth-panel[data-state=training]")
    panel.locator("polyline.photos").first.wait_for(state="attached")
    assert panel.is_visible()
    panel.get_by_role("button", name="Finish now and keep").click()
    panel = page.locator(".dreambooth-panel[data-state=finished]")
    panel.wait_for()
    assert panel.locator("code").text_content().startswith("dreambooth/zwx-cup")
    page.locator("img[src*='teach_'] >> visible=true").first.wait_for()
