"""What the panel of a training node gets of a run. Needs no ComfyUI."""

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest

from trainer.observer import ScoreReport, StepReport

ROOT = Path(__file__).parents[2]
VIEWS = {
    "View": ("run_view", "view.js"),
    "Score": ("run_view", "view.js"),
    "Preview": ("run_view", "view.js"),
    "PhotosView": ("photo_view", "photo_set.js"),
    "PhotoView": ("photo_view", "photo_set.js"),
    "ClassView": ("class_view", "class_images.js"),
}
"""The module and the page's file of each type that both declare."""
STATES = {"State": ("run_view", "view.js"), "ClassState": ("class_view", "class_images.js")}


@pytest.fixture(scope="module")
def load():
    """Imports a module of nodes/ that needs no ComfyUI."""
    # Packages without their own __init__.py, which needs ComfyUI.
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    yield lambda name: importlib.import_module(f"pack.nodes.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def run_view(load):
    return load("run_view")


@pytest.fixture
def view(run_view):
    return run_view.RunView("10:3", "prompt", "workflow")


def report(step, loss=0.1, *, total=1000, prior_loss=None):
    return StepReport(
        step=step, total_steps=total, loss=loss, instance_loss=loss, prior_loss=prior_loss,
        learning_rates={}, grad_norm=1.0, steps_per_second=2.0, seconds_left=3.0,
        peak_megabytes=4.0,
    )  # fmt: skip


def score(step, balance, *, learned=0.5, kept=None):
    return ScoreReport(
        step=step, subject=0.5, prompt=None, prior=None, learned=learned, prompts_kept=kept,
        class_kept=None, balance=balance,
    )  # fmt: skip


# --- The page's part --------------------------------------------------------------------------


def keys_in_js(name, file):
    """The documented properties of a type in a file of web/."""
    text = (ROOT / "web" / file).read_text("utf-8")
    block = text.split(f"@typedef {{object}} {name}\n")[1]
    lines = block.splitlines()
    properties = []
    for line in lines:
        if not (found := re.search(r"@property \{.*\} (\w+)", line)):
            break
        properties.append(found[1])
    return properties


@pytest.mark.parametrize("name", VIEWS)
def test_the_page_declares_the_same_keys(load, name):
    module, file = VIEWS[name]
    assert keys_in_js(name, file) == list(getattr(load(module), name).__annotations__)


@pytest.mark.parametrize("name", STATES)
def test_the_page_declares_the_same_states(load, name):
    module, file = STATES[name]
    text = (ROOT / "web" / file).read_text("utf-8")
    (line,) = re.findall(rf"@typedef \{{(.*)\}} {name}", text)
    assert tuple(re.findall(r'"(\w+)"', line)) == get_args(load(module).State)


def test_the_page_uses_the_same_names_of_messages_and_routes(load, run_view):
    constants = {}
    for path in (ROOT / "web").glob("*.js"):
        constants |= dict(
            re.findall(r'^export const (\w+) = "(.*)";', path.read_text("utf-8"), re.M)
        )
    spec = importlib.util.spec_from_file_location("host_version", ROOT / "host_version.py")
    host_version = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(host_version)
    assert constants == {
        "LIVE_EVENT": run_view.EVENT,
        "LIVE_ROUTE": run_view.LIVE_ROUTE,
        "UI_KEY": run_view.UI_KEY,
        "PREVIEW_ROUTE": run_view.PREVIEW_ROUTE,
        "SAVE_ROUTE": run_view.SAVE_ROUTE,
        "FINISH_ROUTE": host_version.FINISH_ROUTES[0],
        **names_in(load("photo_view")),
        **names_in(load("class_view")),
    }


def names_in(module):
    return {
        name: value
        for name, value in vars(module).items()
        if name.endswith(("_EVENT", "_ROUTE", "_UI_KEY"))
    }


def test_the_page_shows_a_panel_on_both_training_nodes():
    (types,) = re.findall(r"TRAINING_NODES = (\[.*\])", (ROOT / "web" / "graph.js").read_text())
    nodes = [
        ROOT / "nodes" / f"{name}.py" for name in ("dreambooth_train", "textual_inversion_train")
    ]
    ids = [re.search(r'node_id="(\w+)"', path.read_text())[1] for path in nodes]
    assert json.loads(types) == ids


# --- The curve --------------------------------------------------------------------------------


def test_losses_are_averaged_over_a_twentieth_of_the_run(run_view):
    curve = run_view.LossCurve()
    for step in range(1, 101):
        curve.add(report(step, loss=float(step % 2), total=100, prior_loss=1.0))
    assert curve.points[0] == (1, 1.0, 1.0)
    assert curve.points[1] == (2, 0.5, 1.0), "a plain mean at first"
    assert all(0.4 < photos < 0.6 for _, photos, _ in curve.points[10:])
    assert [step for step, _, _ in curve.points] == list(range(1, 101))


def test_long_runs_are_thinned_and_keep_the_last_step(run_view):
    curve = run_view.LossCurve()
    for step in range(1, 5002):
        curve.add(report(step, total=5001))
        assert len(curve.points) <= run_view.MAX_POINTS
    steps = [step for step, _, _ in curve.points]
    assert len(steps) > run_view.MAX_POINTS / 2
    assert (steps[0], steps[-1]) == (16, 5001)
    assert {b - a for a, b in zip(steps, steps[1:-1], strict=False)} == {16}


def test_a_run_without_class_images_has_one_curve(run_view):
    curve = run_view.LossCurve()
    curve.add(report(1))
    assert curve.points == [(1, 0.1, None)]


# --- Changes ----------------------------------------------------------------------------------


def merged(messages):
    """What a page shows after these changes."""
    shown = {"points": []}
    for message in messages:
        new = message.pop("new_points", [])
        shown |= message
        shown["points"] = shown["points"] + new
    return shown


def test_the_first_changes_are_everything_and_later_ones_only_what_changed(view):
    first = view.changes()
    assert set(first) == set(view.whole())
    view.update(activity="Encoding photos 1/6")
    assert view.changes() == {
        "node": "10:3", "prompt": "prompt", "workflow": "workflow", "version": 2,
        "activity": "Encoding photos 1/6",
    }  # fmt: skip
    assert set(view.changes()) == {"node", "prompt", "workflow", "version"}


def test_changes_add_up_to_the_whole_view_also_when_points_are_thinned(view, run_view):
    messages = [view.changes()]
    for step in range(1, 1001):
        view.add_reports([report(step)])
        if step % 7 == 0:
            messages.append(view.changes())
    messages.append(view.changes())
    assert json.loads(json.dumps(merged(messages))) == json.loads(json.dumps(view.whole()))
    assert sum("points" in message for message in messages) == 3, "at first, and when thinned"


def test_the_best_step_and_overfitting_are_marked(view):
    scores = [score(0, 0.0, learned=0.0, kept=1.0), score(10, 0.8, learned=0.8, kept=0.9)]
    view.set_scores(scores)
    assert (view["best"], view["overfitting"]) == (10, None)
    view.set_scores([*scores, *(score(n, 0.4, learned=0.8, kept=0.4) for n in (20, 30))])
    assert (view["best"], view["overfitting"]) == (10, 20)
    assert view["scores"][0] == {
        "step": 0, "learned": 0.0, "prompts_kept": 1.0, "class_kept": None
    }  # fmt: skip


def test_previews_of_a_step_replace_earlier_ones_in_the_order_of_steps(view, run_view):
    def preview(step, stamp):
        return run_view.Preview(step=step, stamp=stamp, prompts=["a"], files=["a.png"])

    for step, stamp in ((20, 1), (0, 1), (20, 2), (10, 1)):
        view.add_preview(preview(step, stamp))
    assert [(each["step"], each["stamp"]) for each in view["previews"]] == [
        (0, 1), (10, 1), (20, 2),
    ]  # fmt: skip


def test_the_latest_lines_are_kept_and_the_message_is_not_repeated(view, run_view):
    view.update(message="Stopped after step 3.")
    for number in (0, *range(7)):
        view.add_line(f"Warning: {number}")
    view.add_line("Warning: Stopped after step 3.")
    assert view["lines"] == [f"Warning: {number}" for number in range(2, 7)]
