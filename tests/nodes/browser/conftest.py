"""A real browser on a real ComfyUI: Chromium, driven by Playwright, with the canvas of old and the
nodes of "Nodes 2.0". COMFYUI_FRONTEND names the static folder of another frontend than ComfyUI's
own. Tests are skipped, with a reason, if one of these is missing."""

from __future__ import annotations

import copy
import itertools
import json
import random
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.toy import world
from trainer.toy.drawing import draw

ROOT = Path(__file__).parents[3]
TEMPLATE = ROOT / "example_workflows" / "Toy model, first run.json"
TIMEOUT = 120_000
"""Milliseconds to wait for something on the page, before the test fails."""
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
MODES = {"classic": False, "nodes 2.0": True}
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Queue.ShowFlatList": True}
"""Keeps the page from opening its templates on its own."""
PHOTOS, TRAIN = 3, 6
"""The ids of Load Instance Images and DreamBooth Train in the template."""

_seeds = itertools.count(5000)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A running Chromium."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright, from requirements/browser.txt, is not installed"
    )
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not path:
        pytest.skip("there is no Chromium on this system")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Tab:
    """A tab with ComfyUI's page."""

    def __init__(self, context: Any, address: str) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(TIMEOUT)
        self.errors: list[str] = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self._address = address
        self.open()

    def open(self) -> None:
        self.page.goto(f"http://{self._address}/")
        self._wait_until_ready()

    def reload(self) -> None:
        self.page.reload()
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        self.page.wait_for_function(
            "window.app?.extensionManager && app.extensions.some(each => each.name == 'dreambooth')"
            " && app.graph && document.querySelector('[data-testid=queue-button]')"
        )

    def load(self, workflow: dict[str, Any]) -> None:
        """Open a workflow as if its file had been dropped on the page."""
        self.page.evaluate("workflow => app.loadGraphData(workflow)", workflow)
        self.page.wait_for_function("id => app.rootGraph.id == id", arg=workflow["id"])

    def run(self) -> None:
        """Press ComfyUI's button."""
        self.page.locator("[data-testid=queue-button]").first.click()

    def panel(self, node: int | str = TRAIN) -> Any:
        return self.page.locator(f".dreambooth-panel[data-node='{node}']")

    def wait_for_state(self, state: str, node: int | str = TRAIN) -> Any:
        """Return the panel of a node once it shows this state."""
        panel = self.page.locator(f".dreambooth-panel[data-node='{node}'][data-state='{state}']")
        panel.wait_for(state="attached")
        return panel

    def wait_for_text(self, text: str, node: int | str = TRAIN) -> None:
        self.panel(node).filter(has_text=text).wait_for(state="attached")

    def points(self, node: int | str = TRAIN) -> int:
        """The number of points of the curve of the photos' losses."""
        found = self.panel(node).locator("polyline.photos").first.get_attribute("points")
        return len(found.split())

    def wait_for_points(self, more_than: int, node: int | str = TRAIN) -> None:
        self.page.wait_for_function(
            "([node, count]) => document.querySelector(`.dreambooth-panel[data-node='${node}'] "
            "polyline.photos`)?.points.length > count",
            arg=[str(node), more_than],
        )


@pytest.fixture
def open_tab(chromium: Any, comfyui: Any, mode: str) -> Iterator[Callable[[], Tab]]:
    """Opens tabs of one window, in the mode."""
    with _open_tabs(chromium, comfyui, mode) as open_one:
        yield open_one


class _open_tabs:
    def __init__(self, chromium: Any, server: Any, mode: str) -> None:
        self._context = chromium.new_context(viewport={"width": 1600, "height": 1000})
        self._server = server
        for name, value in {**SETTINGS, "Comfy.VueNodes.Enabled": MODES[mode]}.items():
            status, _ = server.post(f"/settings/{name}", value)
            assert status == 200

    def __enter__(self) -> Callable[[], Tab]:
        return lambda: Tab(self._context, self._server.address)

    def __exit__(self, *_: object) -> None:
        self._context.close()
        # What a failed test left running would make the next ones wait.
        self._server.post("/queue", {"clear": True})
        self._server.interrupt()


@pytest.fixture
def tab(open_tab: Callable[[], Tab]) -> Iterator[Tab]:
    """An open tab. The page must report no error while it is used."""
    tab = open_tab()
    yield tab
    assert tab.errors == []


def toy_workflow(*, steps: int = 40, every: int = 10, name: str = "", **others: Any) -> Any:
    """The template of the first run with few class images and a seed of its own, so that it trains.
    `others` are values of DreamBooth Train: `on_existing`, `keep_state`."""
    number = next(_seeds)
    workflow = copy.deepcopy(json.loads(TEMPLATE.read_text("utf-8")))
    workflow["id"] = f"6d1f1a52-3d2e-4c0e-9d55-{number:012d}"
    nodes = {node["id"]: node for node in workflow["nodes"]}
    nodes[4]["widgets_values"][2:5] = [4, "Euler", 2]
    nodes[5]["widgets_values"][1:4] = [every, "Euler", 2]
    nodes[8]["widgets_values"][1:5] = ["Euler", "none", "none", 2]
    values = nodes[TRAIN]["widgets_values"]
    values[2:5] = [steps, 1, False]
    values[6], values[9] = number, name or f"browser-{number}"
    values[10] = others.pop("on_existing", "reuse")
    values[11] = others.pop("keep_state", False)
    assert not others
    return workflow


@pytest.fixture
def taken(tmp_path: Path) -> Path:
    """A folder with photos as a user has them, one with a caption, and its unusual name."""
    folder = tmp_path / f"My cup: {secrets.token_hex(3)}"
    folder.mkdir()
    for number in range(4):
        scene = world.pose(world.SUBJECT, random.Random(number), "cup")
        draw(scene).save(folder / f"cup {number}.png")
    (folder / "cup 1.txt").write_text("a photo of sks cup on the beach\r\n", "utf-16")
    return folder
