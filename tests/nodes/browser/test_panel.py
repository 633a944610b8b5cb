"""The panel on a training node, in a browser: what it shows of a run, and its buttons."""


import pytest

from tests.nodes.browser.conftest import toy_workflow

pytestmark = [pytest.mark.xdist_group("comfyui")]

LONG = 100_000
"""Steps of a run that a test ends."""


def picture_steps(panel):
    """The titles of the rows of previews."""
    return panel.locator(".previews h4").all_text_contents()


def are_loaded(panel):
    """Whether all pictures on the panel have pixels."""
    return panel.locator(".previews img").evaluate_all(
        "async images => { for (const each of images) { each.loading = 'eager'; await each.decode()"
        " } return images.length && images.every(each => each.naturalWidth > 0) }"
    )


def test_a_run_is_shown_from_the_first_step_to_the_written_file(tab):
    workflow = toy_workflow(steps=40, every=10)
    tab.load(workflow)
    tab.run()
    tab.wait_for_state("training")
    tab.wait_for_points(3)
    panel = tab.wait_for_state("finished")
    assert panel.locator(".status").text_content() == "Finished: 40 steps"
    assert tab.points() == 40
    assert picture_steps(panel)[:2] == ["Step 40", "Base model, from the same noise"]
    assert picture_steps(panel)[2:] == ["Step 30", "Step 20"]
    panel.get_by_role("button", name="Show earlier steps (1)").click()
    assert picture_steps(panel)[-1] == "Step 10"
    assert are_loaded(panel)
    captions = panel.locator(".previews figcaption").all_text_contents()
    assert captions[0] == "a photo of sks cup on the beach"
    assert panel.locator("code").text_content().startswith("dreambooth/browser-")
    # The graph goes on: what was sampled is on the last node.
    tab.page.wait_for_function("Object.keys(app.nodeOutputs).includes('11')")
