"""Errors on a node name widgets where the trainer's own errors name settings. Needs no ComfyUI."""

import ast
import dataclasses
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from trainer.data.cropping import require_size
from trainer.settings.config import DatasetConfig, PriorConfig, TrainingConfig

ROOT = Path(__file__).parents[2]
NOT_MET = {
    "dataset.photos", "output.folder", "output.embedding_folder", "output.keep_state",
}  # fmt: skip
"""Messages name these settings too, but the nodes never pass wrong values for them."""
KEPT_BY_WIDGETS = {
    "dataset.crop", "prior.num_images", "prior.ratio", "prior.teacher_ratio",
    "optimizer.weight_decay", "optimizer.max_grad_norm", "optimizer.num_restarts", "preview.every",
    "output.save_every", "output.keep", "output.state_every", "scoring.num_class_images",
    "scoring.subject_weight",
}  # fmt: skip
"""No widget accepts the values that these errors refuse, or no widget sets them."""


@pytest.fixture(scope="module")
def errors():
    # Packages without their own __init__.py, which needs ComfyUI.
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    yield importlib.import_module("pack.nodes.errors")
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]


def settings():
    """Yield the dotted names of all nested settings, such as dataset.photos."""
    config = TrainingConfig(base=Path(), dataset=DatasetConfig(photos=(Path(),), prompt="-"))
    for field in dataclasses.fields(config):
        below = getattr(config, field.name)
        if dataclasses.is_dataclass(below):
            yield from (f"{field.name}.{inner.name}" for inner in dataclasses.fields(below))


def in_messages():
    """Yield the settings that the trainer's messages name. Docstrings do not count, and
    neither do the facts that identify a run."""
    pattern = re.compile(rf"\b({'|'.join(map(re.escape, settings()))})\b")
    for path in (ROOT / "trainer").rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        nodes = list(ast.walk(tree))
        descriptions = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes if path.name not in ("identity.py", "__main__.py") else ():
            if isinstance(node, ast.Constant) and id(node) not in descriptions:
                yield from pattern.findall(str(node.value))


def test_each_setting_that_an_error_names_has_its_widget(errors):
    assert set(errors.WIDGETS) <= set(settings())
    assert set(in_messages()) - NOT_MET - KEPT_BY_WIDGETS == set(errors.WIDGETS)


def test_an_error_names_widgets_and_keeps_its_class(errors):
    @errors.naming_widgets()
    def train():
        PriorConfig(weight=1)

    with pytest.raises(ValueError) as caught:
        train()
    assert str(caught.value) == (
        "prior_weight of DreamBooth Train is 1 but class_prompt is empty. Name the class, such as "
        "'a photo of a dog', or set prior_weight of DreamBooth Train to 0."
    )


def test_the_error_of_a_small_photo_names_the_widgets(errors):
    with pytest.raises(ValueError) as caught, errors.naming_widgets():
        require_size(Path("cup.png"), Image.new("RGB", (20, 15)), (64, 64))
    assert str(caught.value) == (
        "'cup.png' is 20x15 pixels, smaller than the training resolution 64. Use larger images, "
        "lower resolution of Load Instance Images or switch on allow_upscaling of Load Instance "
        "Images."
    )


def test_other_errors_are_unchanged(errors):
    error = FileNotFoundError(2, "No such file or directory", "/nowhere/output.named")
    before = str(error)
    with pytest.raises(FileNotFoundError) as caught, errors.naming_widgets():
        raise error
    assert caught.value is error
    assert str(error) == before


def test_errors_of_packages_say_what_to_do(errors):
    with pytest.raises(RuntimeError) as caught, errors.naming_widgets():
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")
    assert str(caught.value).startswith("The package diffusers is missing, damaged or does not fit")


def test_control_characters_become_escapes(errors):
    with pytest.raises(ValueError) as caught, errors.naming_widgets():
        raise ValueError("'\x1b[2J' cannot be read")
    assert str(caught.value) == "'\\x1b[2J' cannot be read"
