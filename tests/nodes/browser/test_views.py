"""What the panel shows of a run's numbers, in a browser: from messages as the server sends them."""

import pytest

from tests.nodes.browser.conftest import TRAIN, toy_workflow
from tests.nodes.browser.panels import press, status

pytestmark = pytest.mark.xdist_group("comfyui")

VIEW = {
    "node": str(TRAIN), "prompt": "none that runs", "version": 1, "run": "a", "folder": "",
    "state": "training", "activity": "", "step": 40, "total": 100, "seconds_left": 3725.4,
    "steps_per_second": 0.5, "megabytes_taken": 4608, "megabytes_free": 12800,
    "points": [[10, 0.4, 0.1], [20, 0.2, None], [40, 0.3, 0.2]],
    "scores": [
        {"step": 20, "learned": 0.5, "prompts_kept": 0.75, "class_kept": None},
        {"step": 40, "learned": 0.625, "prompts_kept": 0.25, "class_kept": None},
    ],
    "best": 20, "overfitting": 30, "can_preview": False, "previews": [], "file": None,
    "lines": ["images: 6"], "message": "",
}  # fmt: skip


def send(tab, view):
    tab.page.evaluate(
        "view => { comfyAPI.api.api.dispatchCustomEvent('dreambooth.live', view) }", view
    )


def shown(tab, **values):
    """The panel after a message about the open workflow."""
    workflow = tab.page.evaluate("app.rootGraph.id")
    send(tab, {**VIEW, "workflow": workflow, **values})
    return tab.panel()


def places(chart, kind):
    """The points of a curve, in the chart's units."""
    found = chart.locator(f"polyline.{kind}").get_attribute("points")
    return [tuple(map(float, each.split(","))) for each in found.split()]


def test_numbers_of_a_run_are_shown(tab):
    tab.load(toy_workflow())
    panel = shown(tab)
    assert status(panel) == "Step 40 of 100 · 1:02:05 left · 2.0 s/step"
    assert panel.locator(".details").text_content() == "Memory: 4.5 GB taken, 13 GB free"
    assert panel.locator("progress").evaluate("bar => [bar.value, bar.max]") == [40, 100]
    assert panel.locator(".lines li").all_text_contents() == ["images: 6"]
    assert not panel.get_by_role("button", name="Preview now").is_visible()
    panel = shown(tab, version=2, seconds_left=65, steps_per_second=12, can_preview=True)
    assert status(panel) == "Step 40 of 100 · 1:05 left · 12 steps/s"
    assert panel.get_by_role("button", name="Preview now").is_visible()


def test_losses_and_scores_are_drawn_with_the_best_step_and_overfitting(tab):
    tab.load(toy_workflow())
    losses, scores = shown(tab).locator(".chart").all()
    assert losses.locator("figcaption").text_content() == "Lossphotos 0.3class images 0.2"
    photos, classes = places(losses, "photos"), places(losses, "class")
    assert [len(photos), len(classes)] == [3, 2]
    # From left to right; the highest value is the highest point.
    assert photos[0][0] < photos[1][0] < photos[2][0]
    assert photos[0][1] < photos[2][1] < photos[1][1]
    assert (photos[0][0], photos[2][0]) == (classes[0][0], classes[1][0])
    assert scores.locator("figcaption").text_content() == (
        "Scoressubject learned 0.625prompts kept 0.25best step 20overfitting from 30"
    )
    best, marked = scores.locator("line.best"), scores.locator("rect.overfitting")
    learned = places(scores, "photos")
    assert float(best.get_attribute("x1")) == learned[0][0]
    assert learned[0][0] < float(marked.get_attribute("x")) < learned[1][0]
    assert scores.get_by_role("img").get_attribute("aria-label") == (
        "Scores at step 40: subject learned 0.625, prompts kept 0.25; best step 20; overfitting "
        "from step 30"
    )


def test_buttons_say_what_they_have_done_until_the_run_answers(tab):
    tab.load(toy_workflow())
    panel = shown(tab)
    details = panel.locator(".details")
    press(panel, "Stop")
    details.filter(has_text="Stopping. Queue the same again to continue from there.").wait_for()
    shown(tab, version=2, state="stopped")
    assert "Stopping" not in details.text_content()
    panel = shown(tab, prompt="another")
    press(panel, "Save now")
    details.filter(has_text="No training is running").wait_for()


def test_a_page_that_missed_messages_asks_for_all_of_them(tab):
    tab.load(toy_workflow())
    shown(tab)
    with tab.page.expect_response("**/dreambooth/live"):
        shown(tab, version=4, step=70)
    assert status(tab.panel()).startswith("Step 40 of 100")
