"""Takes the documentation's pictures of ComfyUI's page: `python -m tests.nodes.browser.pictures`.

Needs what the tests in a browser need. Writes docs/training.webp, a training of the included model
under way, and docs/comfyui.png, the whole workflow after it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from tests.nodes.browser.conftest import CHROMIUM, ROOT, SETTINGS, TEMPLATE, TRAIN, Tab
from tests.nodes.conftest import ComfyUI, make_base

DOCS = ROOT / "docs"
HIDDEN = {"Comfy.Minimap.Visible": False, "Comfy.Graph.CanvasInfo": False}
MARGIN = 16
TITLE = 30
STEPS_PER_FRAME = 12
FRAME, LAST_FRAME = 350, 5000
ARE_SEEN = """() => [...document.querySelectorAll("img[src*='sks-cup']")]
    .filter(image => image.checkVisibility() && image.naturalWidth > 0).length >= 4"""
"""Whether the page shows the four pictures that the workflow draws."""
TIMEOUT = 3_600_000
"""Milliseconds."""
PLACE = """
([left, top, zoom]) => {
  app.canvas.ds.scale = zoom;
  app.canvas.ds.offset = [100 / zoom - left, 120 / zoom - top];
  app.canvas.setDirty(true, true);
}
"""
"""Moves the canvas so that a part of the workflow is at the top left of the page."""


def main() -> None:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, CHROMIUM)))
    with TemporaryDirectory() as folder, sync_playwright() as driver:
        server = ComfyUI(make_base(Path(folder) / "base"))
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            server.start()
            for name, value in {**SETTINGS, **HIDDEN, "Comfy.VueNodes.Enabled": True}.items():
                server.post(f"/settings/{name}", value)
            context = browser.new_context(viewport={"width": 1700, "height": 1200})
            take(Tab(context, server.address))
        finally:
            browser.close()
            server.stop()


def take(tab: Tab) -> None:
    workflow = json.loads(TEMPLATE.read_text("utf-8"))
    tab.page.set_default_timeout(TIMEOUT)
    (train,) = [node for node in workflow["nodes"] if node["id"] == TRAIN]
    tab.load(workflow)
    part = {"left": train["pos"][0], "zoom": 1.0}
    tab.run()
    tab.wait_for_state("training")
    frames = [picture(tab, workflow, **part) for _ in steps(tab, train["widgets_values"][2])]
    tab.page.wait_for_function("id => app.nodeOutputs[id]?.images", arg="11")
    tab.page.wait_for_function(ARE_SEEN)
    frames.append(picture(tab, workflow, **part))
    durations = [FRAME] * (len(frames) - 1) + [LAST_FRAME]
    frames[0].save(
        DOCS / "training.webp", save_all=True, append_images=frames[1:], duration=durations,
        loop=0, quality=80, method=6,
    )  # fmt: skip
    picture(tab, workflow, left=0, zoom=0.78).save(DOCS / "comfyui.png", optimize=True)


def steps(tab: Tab, total: int) -> Iterator[int]:
    """Yield whenever the panel shows more steps."""
    for step in range(STEPS_PER_FRAME, total, STEPS_PER_FRAME):
        tab.page.wait_for_function(
            "([id, step]) => { const text = document.querySelector(`.dreambooth-panel[data-node='${"
            "id}'] .status`).textContent; return !text.startsWith('Step') || "
            "Number(text.match(/\\d+/)[0]) >= step }",
            arg=[str(TRAIN), step],
        )
        yield step


def picture(tab: Tab, workflow: dict[str, Any], *, left: float, zoom: float) -> Image.Image:
    """The nodes from `left` on."""
    right = max(node["pos"][0] + node["size"][0] for node in workflow["nodes"])
    bottom = max(node["pos"][1] + node["size"][1] for node in workflow["nodes"])
    left, top = left - MARGIN, -TITLE - MARGIN
    tab.page.evaluate(PLACE, [left, top, zoom])
    tab.page.evaluate("() => new Promise(done => requestAnimationFrame(() => done()))")
    clip = {
        "x": 100, "y": 120, "width": (right + MARGIN - left) * zoom,
        "height": (bottom + MARGIN - top) * zoom,
    }  # fmt: skip
    return Image.open(io.BytesIO(tab.page.screenshot(clip=clip))).convert("RGB")


if __name__ == "__main__":
    main()
