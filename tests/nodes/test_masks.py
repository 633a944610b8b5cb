"""Masks that are connected to Load Instance Images: which image each belongs to, and that they
train."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
ONLY_GRAPH = "none, only the images below"
COLORS = ("red", "green", "blue")
RANDOM_WEIGHTS = """
import os, sys, torch
comfyui, file = sys.argv[1:]
sys.path.insert(0, comfyui)
sys.argv[1:] = ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import comfy.bg_removal_model, comfy.utils
folder = os.path.dirname(comfy.bg_removal_model.__file__)
config = os.path.join(folder, "background_removal", "birefnet.json")
torch.manual_seed(0)
tensors = comfy.bg_removal_model.BackgroundRemovalModel(config).model.state_dict()
def random(name, tensor):
    if not tensor.is_floating_point():
        return tensor
    # Variances must be positive: NaN as the offset of a deformable convolution ends the process.
    return (torch.randn(tensor.shape) * 0.02 + name.endswith("running_var")).half()
comfy.utils.save_torch_file({name: random(name, each) for name, each in tensors.items()}, file)
"""
"""Writes a file of Remove Background's network with random weights."""


@pytest.fixture(scope="module")
def masks():
    # Packages without their own __init__.py, which needs ComfyUI.
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [str(folder)]
    yield importlib.import_module("pack.nodes.masks")
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]


def images(count: int) -> list[torch.Tensor]:
    return [torch.zeros(count, 4, 6, 3)]


def test_a_mask_belongs_to_the_images_of_its_number(masks):
    one, three = torch.rand(1, 4, 6), torch.rand(3, 4, 6)
    given = {"image0": images(3), "image2": images(2), "image3": images(1), "image5": images(3)}
    found = masks.masks_of(given, {
        "mask0": [three], "mask2": [one[0]], "mask5": [one, three[:2]],
    })  # fmt: skip
    assert found.keys() == {"image0", "image2", "image5"}
    assert torch.equal(torch.stack(found["image0"]), three)
    assert [torch.equal(mask, one[0]) for mask in found["image2"]] == [True, True]
    assert torch.equal(torch.stack(found["image5"]), torch.cat([one, three[:2]]))


def test_masks_that_belong_to_nothing_are_refused(masks):
    with pytest.raises(ValueError) as error:
        masks.masks_of({"image0": images(1)}, {"mask1": [torch.ones(1, 4, 6)]})
    assert str(error.value) == (
        "mask1 is connected, but image1 is not. A mask belongs to the images of the same number. "
        "The masks of photos in a folder are files beside them, such as dog-mask.png."
    )
    with pytest.raises(ValueError) as error:
        masks.masks_of({"image0": images(3)}, {"mask0": [torch.ones(2, 4, 6)]})
    assert str(error.value) == (
        "mask0 has 2 masks, but image0 has 3 images. Connect one mask for each image, or one for "
        "all."
    )
    black = torch.ones(2, 4, 6)
    black[1] = 0
    with pytest.raises(ValueError) as error:
        masks.masks_of({"image0": images(2)}, {"mask0": [black]})
    assert str(error.value) == (
        "mask0 has a mask that is black everywhere, so nothing of its photo would be learned. "
        "White is learned. Load Image gives such a mask for an image without transparency, and "
        "for others the background: use Invert Mask."
    )


# --- In a real ComfyUI --------------------------------------------------------------------------


@pytest.fixture
def folders(comfyui, new_seed):
    """Three photos of different sizes with a subject, and three masks, each in a folder."""
    rng = np.random.default_rng(new_seed % 1000)
    names = f"photos {new_seed}", f"masks {new_seed}"
    for name in names:
        (comfyui.base / "input" / name).mkdir()
    for number, color in enumerate(COLORS):
        size = (160 + 16 * number, 144)
        photo = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
        photo.paste(color, (40, 30, 110, 120))
        mask = Image.new("L", size)
        mask.paste(255, (40, 30, 110, 120))
        for folder, image in zip(names, (photo, mask), strict=True):
            image.save(comfyui.base / "input" / folder / f"{number}.png")
    return names


def graph_with(toy_graph, folders, **settings):
    photos, masks = folders
    graph = {number: toy_graph(ONLY_GRAPH, **settings)[number] for number in ("1", "2", "3")}
    graph["2"]["inputs"] |= {"images.image0": ["6", 0], "masks.mask0": ["8", 0]}
    for number, folder in (("6", photos), ("7", masks)):
        graph[number] = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder}}
    graph["8"] = {"class_type": "ImageToMask", "inputs": {"image": ["7", 0], "channel": "red"}}
    graph["9"] = {"class_type": "PreviewImage", "inputs": {"images": ["2", 3]}}
    graph["10"] = {"class_type": "Log", "inputs": {"text": ["3", 0]}}
    return graph


@pytest.mark.xdist_group("comfyui")
def test_painted_masks_train_and_the_command_line_repeats_the_run(
    comfyui, toy_graph, folders, new_seed, tmp_path
):
    graph = graph_with(toy_graph, folders, name="masked", seed=new_seed)
    graph["2"]["inputs"] |= {"random_backgrounds": 2, "unmasked_weight": 0.0}
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.last_texts["2"].splitlines()[0] == "3 photos, 3 with masks"
    assert outcome.steps.count(3) == 1
    (sheet,) = outcome.outputs("9")["images"]
    assert dark_share(comfyui.base / "temp" / sheet["subfolder"] / sheet["filename"]) > 0.2
    run = newest_run(comfyui)
    definition = json.loads((run / "manifest.json").read_text("utf-8"))["definition"]
    assert definition["dataset.unmasked_weight"] == 0
    assert definition["dataset.random_backgrounds"] == 2
    assert definition["masks"]
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "train", "--settings", run / "settings.toml",
         "--device", "cpu"], cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Found " in done.stderr
    graph["2"]["inputs"]["use_masks"] = "off"
    graph["2"]["inputs"]["random_backgrounds"] = 0
    outcome = comfyui.run(graph)
    assert any("use_masks of Load Instance Images is off (3)" in text for text in outcome.warnings)
    assert newest_run(comfyui) != run


def newest_run(comfyui) -> Path:
    runs = (comfyui.base / "output" / "dreambooth" / "runs").glob("*/manifest.json")
    return max(runs, key=lambda path: path.stat().st_mtime_ns).parent


def dark_share(path: Path) -> float:
    with Image.open(path) as image:
        return float((np.asarray(image.convert("L")) < 110).mean())


@pytest.mark.xdist_group("comfyui")
def test_a_mask_of_another_shape_is_refused_on_the_node(comfyui, toy_graph, folders):
    graph = graph_with(toy_graph, folders)
    graph["8"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 64, "height": 64}}
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_error"
    assert outcome.error == (
        "2",
        "'0000-mask.png' is taken for the mask of '0000.png', but has another shape: 64x64 pixels "
        "instead of 160x144. Save the mask with the photo's width and height, both upright; if it "
        "is a photo, rename it.",
    )


@pytest.mark.xdist_group("comfyui")
def test_masks_without_images_are_refused_on_the_node(comfyui, toy_graph, folders):
    graph = graph_with(toy_graph, folders)
    graph["2"]["inputs"]["masks.mask1"] = graph["2"]["inputs"].pop("masks.mask0")
    outcome = comfyui.run(graph)
    assert outcome.error[1].startswith("mask1 is connected, but image1 is not.")


@pytest.mark.xdist_group("comfyui")
def test_the_mask_of_remove_background_trains(comfyui, toy_graph, folders, new_seed):
    """With random weights, which give some mask."""
    for number in (1, 2):
        (comfyui.base / "input" / folders[0] / f"{number}.png").unlink()
    file = comfyui.base / "models" / "background_removal" / "random.safetensors"
    file.parent.mkdir(exist_ok=True)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    comfy = os.environ["COMFYUI_PATH"]
    subprocess.run([python, "-c", RANDOM_WEIGHTS, comfy, file], check=True, cwd=comfy)
    graph = graph_with(toy_graph, folders, name="cut out", seed=new_seed)
    graph["7"]["class_type"] = "LoadBackgroundRemovalModel"
    graph["7"]["inputs"] = {"bg_removal_name": file.name}
    graph["8"]["class_type"] = "RemoveBackground"
    graph["8"]["inputs"] = {"bg_removal_model": ["7", 0], "image": ["6", 0]}
    outcome = comfyui.run(graph)
    file.unlink()
    assert outcome.end == "execution_success", outcome.error
    assert outcome.last_texts["2"].splitlines()[0] == "1 photo, 1 with masks"
    assert outcome.steps.count(3) == 1
    photos = (comfyui.base / "temp" / "dreambooth" / "photos").glob("*/0000-mask.png")
    newest = max(photos, key=lambda path: path.stat().st_mtime_ns)
    with Image.open(newest) as image:
        assert (image.mode, image.size) == ("L", (160, 144))
