"""What tests read from a panel, and press on it."""

from __future__ import annotations

import re
from typing import Any

LONG = 100_000
"""Steps of a run that a test ends."""


def press(panel: Any, name: str) -> None:
    panel.get_by_role("button", name=name).click()


def status(panel: Any) -> str:
    return str(panel.locator(".status").text_content())


def message(panel: Any) -> str:
    """The sentence about how the run ended, which is seen without a click and without scrolling."""
    found = panel.locator(".message")
    assert found.is_visible()
    seen, around = found.bounding_box(), panel.bounding_box()
    assert around["y"] <= seen["y"]
    assert seen["y"] + seen["height"] <= around["y"] + around["height"]
    return str(found.text_content())


def steps_made(panel: Any) -> int:
    found = re.search(r"(\d+) of", status(panel))
    assert found
    return int(found[1])


def picture_steps(panel: Any) -> list[str]:
    """The titles of the rows of previews."""
    return list(panel.locator(".previews h4").all_text_contents())


def are_loaded(pictures: Any) -> bool:
    """Whether all these pictures have pixels."""
    return bool(
        pictures.evaluate_all(
            "async images => { for (const each of images) { each.loading = 'eager'; await "
            "each.decode() } return images.length > 0 && images.every(each => "
            "each.naturalWidth > 0) }"
        )
    )
