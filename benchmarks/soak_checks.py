"""What a run has left behind, and how that differs from an undisturbed run."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from trainer.cli.settings_file import read_toml


def files(folder: Path) -> list[Path]:
    """The files with a final name. Incomplete ones end in `.part`."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return [path for path in paths if not any(name.endswith(".part") for name in path.parts)]


def require_whole(path: Path) -> None:
    """Read a file to its end. Any exception means that it is damaged."""
    if path.suffix == ".safetensors":
        assert load_file(path)
    elif path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".pt":
        assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in path.name, path
    elif path.suffix == ".json":
        assert json.loads(path.read_text("utf-8"))
    elif path.suffix == ".jsonl":
        # Lines are appended one by one. The last one may be incomplete, and readers expect that.
        for line in path.read_text("utf-8").splitlines()[:-1]:
            assert json.loads(line)
    elif path.suffix == ".toml":
        assert read_toml(path)
    else:
        raise AssertionError(f"Unknown kind of file: {path}")


def difference(folder: Path, expected: Path) -> str:
    """How a finished run differs from the expected one; "" if weights, losses and the names of all
    files are the same."""
    left, right = names(folder), names(expected)
    if left != right:
        return f"FILES: more {sorted(left - right)}, fewer {sorted(right - left)}"
    for path in expected.glob("*.safetensors"):
        one, other = load_file(folder / path.name), load_file(path)
        if one.keys() != other.keys() or any(not torch.equal(one[key], other[key]) for key in one):
            return f"DIFFERENT: {path.name}"
    for what in (losses, result):
        if what(folder) != what(expected):
            return f"DIFFERENT: {what(folder)} instead of {what(expected)}"
    return ""


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def result(folder: Path) -> dict[str, Any]:
    """What the run's manifest says of its result: the names of its files, and how far the weights
    moved."""
    (manifest,) = folder.glob("runs/*/manifest.json")
    recorded = json.loads(manifest.read_text("utf-8"))["result"]
    saved = [
        *recorded["best"].values(),
        *(path for save in recorded["saves"] for path in save.values()),
    ]
    files = [each["path"] for each in recorded["files"].values()]
    return {"files": [Path(path).name for path in [*files, *saved]], "moved": recorded["moved"]}


def losses(folder: Path) -> list[float]:
    (metrics,) = folder.glob("runs/*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in metrics.read_text("utf-8").splitlines()]
