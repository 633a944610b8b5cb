"""What tests draw with a running ComfyUI."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from tests.nodes.conftest import ComfyUI, Outcome, Prompt


def sampling(source: list[Any], **changes: Any) -> dict[str, Any]:
    """Build a Sample with Scheduler node that draws one image."""
    inputs = {"model_source": source, "prompts": "a photo of sks cup", "steps": 2, "seed": 1}
    inputs |= {"scheduler": "DDIM", "guidance_scale": 4.0, **changes}
    return {"class_type": "DreamBoothSampleWithScheduler", "inputs": inputs}


def shown(source: list[Any]) -> dict[str, Any]:
    """Build a node that shows a text."""
    return {"class_type": "PreviewAny", "inputs": {"source": source}}


def draw(
    comfyui: ComfyUI, prompt: Prompt, **nodes: dict[str, Any]
) -> tuple[Outcome, dict[str, np.ndarray]]:
    """Run the workflow with these sampling nodes, and return the image of each, [H, W, 3]."""
    full = dict(prompt)
    for name, node in nodes.items():
        full[name] = node
        inputs = {"images": [name, 0], "filename_prefix": f"drawn {name}"}
        full[f"save {name}"] = {"class_type": "SaveImage", "inputs": inputs}
    outcome = comfyui.run(full)
    assert outcome.end == "execution_success", outcome.error
    return outcome, {name: image_of(comfyui, outcome, f"save {name}") for name in nodes}


def image_of(comfyui: ComfyUI, outcome: Outcome, node: str) -> np.ndarray:
    """Return the only image that a Save Image node wrote, [H, W, 3]."""
    (file,) = outcome.outputs(node)["images"]
    with Image.open(comfyui.base / "output" / file["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=float)
