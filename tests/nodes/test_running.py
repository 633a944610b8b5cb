"""How a real ComfyUI runs our nodes: with lists, with missing values, and with warnings."""

import json
import os
import subprocess
import sys

import pytest
from PIL import Image, features
from safetensors.torch import load_file, save_file

from tests.schemas import nodes as schemas
from tests.trainer.data.test_formats import heif
from trainer.families.layouts import UNET
from trainer.toy import MODEL

pytestmark = pytest.mark.xdist_group("comfyui")

LINKS = {"Model", "Clip", "Vae", "Image", "Autogrow"}
"""Kinds of inputs that have no widget, besides sockets of our own."""
COLORS = ("red", "green", "blue")


def base_model(name):
    return {"class_type": "DreamBoothLoadBaseModel", "inputs": {"checkpoint": name}}


def any_list(*items):
    return {
        "class_type": "AnyList",
        "inputs": {f"item{number}": item for number, item in enumerate(items)},
    }


@pytest.fixture
def dataset(comfyui):
    """A folder of three images of different sizes for ComfyUI's own node, which gives a list."""
    folder = comfyui.base / "input" / "for a list"
    folder.mkdir(exist_ok=True)
    for number, color in enumerate(COLORS):
        Image.new("RGB", (160 + 16 * number, 144), color).save(folder / f"{color}.png")
    return {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": folder.name}}


@pytest.fixture
def sampling(toy_graph):
    """A workflow that draws with the toy model, without training."""
    graph = {number: toy_graph()[number] for number in ("1", "4", "5")}
    graph["4"]["inputs"]["model_source"] = ["1", 0]
    graph["5"]["inputs"]["images"] = ["4", 0]
    return graph


# --- Lists ---------------------------------------------------------------------------------------


def test_a_list_of_photos_is_one_data_set(comfyui, toy_graph, dataset, new_seed):
    graph = toy_graph("none, only the images below", seed=new_seed, name="one of a list")
    graph["2"]["inputs"]["images.image0"] = ["6", 0]
    graph["6"] = dataset
    graph["7"] = {"class_type": "Log", "inputs": {"text": ["2", 2]}}
    before = set(comfyui.trained())
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.steps.count(3) == 1
    assert set(comfyui.trained()) - before == {"one of a list.safetensors"}
    assert "Log: 3" in comfyui.log.read_text()


def test_equal_photos_in_a_list_all_count(comfyui, toy_graph):
    graph = {"2": toy_graph("none, only the images below")["2"]}
    graph["2"]["inputs"]["images.image0"] = ["6", 0]
    graph["6"] = any_list(["7", 0], ["8", 0])
    for node in ("7", "8"):
        graph[node] = {
            "class_type": "EmptyImage",
            "inputs": {"width": 512, "height": 512, "batch_size": 2, "color": 0x336699},
        }
    graph["9"] = {"class_type": "Log", "inputs": {"text": ["2", 2]}}
    assert comfyui.run(graph).end == "execution_success"
    assert comfyui.log.read_text().split("Log: ")[-1].startswith("4")


def test_lists_of_images_are_scored_together(comfyui, dataset):
    graph = {
        "1": dataset,
        "2": {
            "class_type": "DreamBoothScoreImages",
            "inputs": {
                "images": ["1", 0], "photos": ["1", 0], "prompt": ["3", 0],
                "judge": "toy (embedded)",
            },
        },
        "3": any_list(*(f"a photo of a {color} cup" for color in COLORS)),
        "4": {"class_type": "Log", "inputs": {"text": ["2", 5]}},
    }  # fmt: skip
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert len(outcome.outputs("2")["images"]) == 1
    assert "image 3" in comfyui.log.read_text().split("Log: ")[-1]


def test_a_list_of_prompts_is_drawn_together(comfyui, sampling):
    sampling["4"]["inputs"]["prompts"] = ["6", 0]
    sampling["4"]["inputs"]["second_scheduler"] = "none"
    sampling["6"] = any_list("a photo of a cup", "a cup on the beach", "a dog")
    outcome = comfyui.run(sampling)
    assert outcome.end == "execution_success", outcome.error
    assert len(outcome.outputs("5")["images"]) == 3


def test_sample_with_scheduler_runs_once_for_each_item_of_other_lists(comfyui, sampling):
    """As ComfyUI does by default: a shorter list's last item stays."""
    sampling["4"]["inputs"] |= {
        "model_source": ["7", 0], "seed": ["8", 0], "width": ["9", 0], "height": 64,
        "second_scheduler": "none", "prompts": ["10", 0],
    }  # fmt: skip
    sampling |= {
        "7": any_list(["1", 0], ["1", 0]),
        "8": any_list(1, 1, 2),
        "9": any_list(64, 64, 32),
        "10": any_list("a photo of a cup", "a dog"),
    }
    outcome = comfyui.run(sampling)
    assert outcome.end == "execution_success", outcome.error
    drawn = []
    for saved in outcome.outputs("5")["images"]:
        with Image.open(comfyui.base / "output" / saved["filename"]) as image:
            drawn.append((image.size, image.tobytes()))
    assert [size for size, _ in drawn] == [(64, 64)] * 4 + [(32, 64)] * 2
    assert drawn[0] == drawn[2] != drawn[1] == drawn[3]


def test_an_empty_list_of_seeds_is_refused(comfyui, sampling):
    sampling["4"]["inputs"]["seed"] = ["8", 0]
    sampling["8"] = any_list()
    assert comfyui.run(sampling).error == (
        "4", "seed is an empty list. Check the node that is connected to it."
    )  # fmt: skip


def test_lists_of_models_and_photos_are_compared_together(comfyui, dataset):
    graph = {
        "1": any_list(["7", 0], ["8", 0]),
        "2": dataset,
        "3": {
            "class_type": "DreamBoothCompareSettings",
            "inputs": {
                "model_sources.model_source0": ["1", 0], "photos": ["2", 0], "steps": ["6", 0],
                "prompts": "a photo of a cup", "judge": "toy (embedded)",
            },
        },
        "5": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "toy"}},
        "6": any_list("1", "2"),
        "7": base_model("toy (embedded)"),
        "8": base_model("copy.safetensors"),
    }  # fmt: skip
    copy = comfyui.base / "models" / "checkpoints" / "copy.safetensors"
    copy.write_bytes(MODEL.read_bytes())
    outcome = comfyui.run(graph)
    copy.unlink()
    assert outcome.end == "execution_success", outcome.error
    assert len(outcome.outputs("5")["images"]) == 4


@pytest.mark.parametrize(
    ("node", "name", "value"),
    [
        ("3", "model_source", ["1", 0]),
        ("3", "dataset", ["2", 0]),
        ("3", "seed", 7),
        ("3", "preset.steps", 2),
        ("3", "preset.learning_rate", 1e-4),
        ("2", "instance_prompt", "a photo of sks cup"),
        ("2", "folder", "toy cup photos (embedded)"),
        ("1", "checkpoint", "toy (embedded)"),
    ],
)
def test_other_lists_are_refused_before_anything_is_trained(
    comfyui, toy_graph, new_seed, node, name, value
):
    graph = toy_graph(seed=new_seed, name="never trained")
    graph[node]["inputs"][name] = ["9", 0]
    graph["9"] = any_list(value, value)
    outcome = comfyui.run(graph)
    names = {"1": "Load Base Model", "2": "Load Instance Images", "3": "DreamBooth Train"}
    assert outcome.error == (
        node,
        f"{name} is a list of 2 values, but {names[node]} runs once. Connect a node that gives one "
        "value, or queue the workflow once for each.",
    )
    assert outcome.steps == []
    graph["9"] = any_list(value)
    if node == "1":
        assert comfyui.run(graph).end == "execution_success"


def test_empty_lists_are_refused(comfyui, toy_graph):
    graph = toy_graph("none, only the images below")
    graph["2"]["inputs"]["images.image0"] = ["6", 0]
    graph["6"] = any_list()
    assert comfyui.run(graph).error == (
        "2", "images.image0 is an empty list. Check the node that is connected to it."
    )  # fmt: skip
    graph["6"] = any_list(["7", 0])
    graph["7"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": 0x336699},
    }
    assert comfyui.run(graph).end == "execution_success"


# --- Missing values -------------------------------------------------------------------------------


def test_a_required_input_without_a_value_is_named(comfyui, toy_graph):
    graph = toy_graph()
    graph["3"]["inputs"]["dataset"] = ["6", 0]
    graph["6"] = {"class_type": "Nothing", "inputs": {}}
    assert comfyui.run(graph).error == (
        "3",
        "dataset has no value: the node connected to it returned nothing. Connect another node.",
    )
    graph["3"]["inputs"]["dataset"] = ["2", 0]
    assert comfyui.run(graph).end == "execution_success"


@pytest.mark.parametrize(
    ("missing", "loader", "prefix", "node"),
    [
        ("model", "Load Diffusion Model", UNET,
         ("UNETLoader", "diffusion_models", "unet_name", {"weight_dtype": "default"})),
        ("clip", "Load CLIP", "cond_stage_model.transformer.",
         ("CLIPLoader", "text_encoders", "clip_name", {"type": "stable_diffusion"})),
        ("vae", "Load VAE", "first_stage_model.", ("VAELoader", "vae", "vae_name", {})),
    ],
)  # fmt: skip
def test_model_from_graph_names_the_part_that_is_missing(
    comfyui, sampling, sd15_checkpoint, missing, loader, prefix, node
):
    """The loader that the message names supplies it."""
    checkpoint = comfyui.base / "models" / "checkpoints" / "whole.safetensors"
    checkpoint.write_bytes(sd15_checkpoint.read_bytes())
    sampling["1"] = {
        "class_type": "DreamBoothModelFromGraph",
        "inputs": {
            name: ["6" if name == missing else "7", number]
            for number, name in enumerate(("model", "clip", "vae"))
        },
    }
    sampling["1"]["inputs"][missing] = ["6", 0]
    sampling["6"] = {"class_type": "Nothing", "inputs": {}}
    sampling["7"] = {
        "class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name},
    }  # fmt: skip
    outcome = comfyui.run(sampling)
    assert outcome.error == (
        "1",
        f"{missing} is empty: the checkpoint or node that is connected to it contains no "
        f"{missing.upper()}. Connect {loader} to {missing} instead.",
    )
    kind, folder, widget, options = node
    part = comfyui.base / "models" / folder / f"{missing}.safetensors"
    part.parent.mkdir(exist_ok=True)
    tensors = load_file(checkpoint).items()
    save_file({k.removeprefix(prefix): v for k, v in tensors if k.startswith(prefix)}, part)
    sampling["6"] = {"class_type": kind, "inputs": {widget: part.name, **options}}
    sampling["4"]["inputs"] |= {"width": 64, "height": 64, "second_scheduler": "none"}
    outcome = comfyui.run(sampling)
    checkpoint.unlink()
    assert outcome.end == "execution_success", outcome.error


@pytest.mark.parametrize(
    ("prefix", "error"),
    [
        ("first_stage_model.", "vae is empty: the checkpoint or node that is connected to it "
         "contains no VAE. Connect Load VAE to vae instead."),
        ("cond_stage_model.", "clip is empty: the checkpoint or node that is connected to it "
         "contains no CLIP. Connect Load CLIP to clip instead."),
    ],
)  # fmt: skip
def test_a_checkpoint_without_a_part_is_refused_by_model_from_graph(
    comfyui, sampling, sd15_checkpoint, prefix, error
):
    tensors = load_file(sd15_checkpoint)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}
    checkpoint = comfyui.base / "models" / "checkpoints" / f"without {prefix}safetensors"
    save_file(kept, checkpoint)
    sampling["1"] = {
        "class_type": "DreamBoothModelFromGraph",
        "inputs": {"model": ["7", 0], "clip": ["7", 1], "vae": ["7", 2]},
    }
    sampling["7"] = {
        "class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name},
    }  # fmt: skip
    outcome = comfyui.run(sampling)
    checkpoint.unlink()
    assert outcome.error == ("1", error)


# --- Defaults -------------------------------------------------------------------------------------


def widgets(node):
    """The names of a node's widgets in the order of its schema, without those below a menu."""
    return [
        field.name
        for field in schemas()[node].inputs
        if field.choice is None and field.kind not in LINKS
        and not field.kind.startswith("DREAMBOOTH_")
    ]  # fmt: skip


@pytest.mark.parametrize("node", schemas())
def test_optional_widgets_do_not_change_the_order_of_widgets(comfyui, node):
    """Saved workflows store values by position, and the page shows required inputs first."""
    info = comfyui.get(f"/object_info/{node}")[node]
    order = [
        name for group in ("required", "optional") for name in info["input_order"].get(group, [])
    ]
    assert [name for name in order if name in widgets(node)] == widgets(node)
    for menu in (info["input"].get("optional", {}) | info["input"]["required"]).values():
        for option in menu[1].get("options", ()) if menu[0] == "COMFY_DYNAMICCOMBO_V3" else ():
            # Either group alone keeps the order of the schema.
            assert sum(bool(group) for group in option["inputs"].values()) <= 1


@pytest.mark.parametrize("node", schemas())
def test_only_inputs_without_a_default_are_required(comfyui, node):
    info = comfyui.get(f"/object_info/{node}")[node]
    with_default = [
        name for name, (_, options) in info["input"]["required"].items() if "default" in options
    ]
    assert with_default == []


def test_a_workflow_without_optional_widgets_runs_with_their_defaults(comfyui, toy_graph):
    full = toy_graph(name="dreambooth")
    del full["4"], full["5"]
    least = json.loads(json.dumps(full))
    for node, kept in (("2", {"folder"}), ("3", {"model_source", "dataset", "preset",
                        "preset.steps", "preset.batch_size", "preset.prior_weight",
                        "preset.learning_rate", "preset.train_text_encoder"})):  # fmt: skip
        inputs = least[node]["inputs"]
        least[node]["inputs"] = {name: inputs[name] for name in kept}
    assert comfyui.run(full).end == "execution_success"
    # The same run is found again only if all settings are equal.
    outcome = comfyui.run(least)
    assert (outcome.end, outcome.steps) == ("execution_success", [])
    assert outcome.texts[-1].startswith("Trained before: ")


def test_a_preset_without_its_values_has_its_own(comfyui, toy_graph):
    graph = toy_graph()
    graph["3"]["inputs"] = {
        name: value for name, value in graph["3"]["inputs"].items() if name != "preset.prior_weight"
    }
    # The toy preset's prior_weight is 1, so that class images are asked for.
    assert comfyui.run(graph).error == (
        "3",
        "prior_weight is 1, but no class images are connected. Connect Generate Class Priors to "
        "class_dataset, or set prior_weight to 0.",
    )


@pytest.mark.parametrize("node", ["4", "6", "7"])
def test_drawing_nodes_run_with_defaults_alone(comfyui, toy_graph, sampling, node):
    """With few steps, as the defaults of a full-size model take too long here."""
    if node == "4":
        sampling["4"]["inputs"] = {"model_source": ["1", 0], "steps": 2}
    if node == "6":
        sampling["4"] = {
            "class_type": "DreamBoothCompareSettings",
            "inputs": {"model_sources.model_source0": ["1", 0], "steps": "2"},
        }
    if node == "7":
        sampling["4"] = {
            "class_type": "DreamBoothGenerateClassPriors",
            "inputs": {
                "model_source": ["1", 0], "images": "made by the model", "images.num_images": 1,
                "images.steps": 2,
            },
        }  # fmt: skip
        sampling["5"]["inputs"]["images"] = ["4", 1]
    outcome = comfyui.run(sampling)
    assert outcome.end == "execution_success", outcome.error
    assert len(outcome.outputs("5")["images"]) == 1


def test_score_images_without_a_judge_says_so(comfyui, dataset):
    graph = {
        "1": dataset,
        "2": {
            "class_type": "DreamBoothScoreImages",
            "inputs": {"images": ["1", 0], "photos": ["1", 0]},
        },
    }
    assert comfyui.run(graph).error == (
        "2", "judge is not set. Choose the CLIP or DINO that scores the images."
    )  # fmt: skip
    graph["2"]["inputs"]["judge"] = "toy (embedded)"
    assert comfyui.run(graph).end == "execution_success"


# --- Warnings -------------------------------------------------------------------------------------


def test_the_trainers_warnings_are_shown_on_the_node_and_in_the_terminal(
    comfyui, toy_graph, new_seed
):
    folder = comfyui.base / "input" / "animated"
    folder.mkdir()
    frames = [Image.new("RGB", (40, 40), color) for color in COLORS]
    frames[0].save(folder / "cup.gif", save_all=True, append_images=frames[1:])
    graph = toy_graph("input/animated", seed=new_seed, name="animated")
    graph["2"]["inputs"]["allow_upscaling"] = True
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    log = comfyui.log.read_text()
    several = (
        "'cup.gif' has several frames. Only the first is used. Save the others as separate files "
        "to train on them too."
    )
    assert several in outcome.warnings
    assert outcome.last_texts["2"] == f"1 photo\nWarning: {several}"
    # They stay while the node goes on.
    current, *warnings = outcome.last_texts["3"].splitlines()
    assert current.startswith("Wrote ")
    enlarged = (
        "Images smaller than the training resolution 64 were enlarged, which softens them (1): "
        "cup.gif."
    )
    assert warnings[:2] == [f"Warning: {several}", f"Warning: {enlarged}"]
    assert several in log
    assert enlarged in log


READABLE_FORMATS = """
import importlib.util
from PIL import features
print("AVIF" * ("avif" in features.modules and features.check_module("avif")))
print("HEIC" * bool(importlib.util.find_spec("pillow_heif")))
"""


@pytest.fixture(scope="module")
def readable_formats(needs_comfyui):
    """Which of AVIF and HEIC the Pillow of ComfyUI's Python can read."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run(
        [python, "-c", READABLE_FORMATS], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_avif_photos_are_read_and_heic_photos_are_named_on_the_node(
    comfyui, toy_graph, readable_formats
):
    if not features.check_module("avif"):
        pytest.skip("this Pillow was built without AVIF")
    if "HEIC" in readable_formats:
        pytest.skip("the Pillow of ComfyUI can read HEIC")
    folder = comfyui.base / "input" / "formats"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "1.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "2.avif", quality=100)
    for name in ("3.heic", "4.jpg"):
        (folder / name).write_bytes(heif(b"heic", b"mif1"))
    graph = {"2": toy_graph("input/formats")["2"]}
    graph["5"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["2", 1], "filename_prefix": "formats"},
    }

    outcome = comfyui.run(graph)

    assert outcome.end == "execution_success", outcome.error
    skipped = {"HEIC": "(2): 3.heic, 4.jpg"}
    colors = [(255, 0, 0), (0, 0, 255)]
    if "AVIF" not in readable_formats:
        skipped["AVIF"], colors = "(1): 2.avif", colors[:1]
    shown = outcome.outputs("5")["images"]
    for saved, color in zip(shown, colors, strict=True):
        with Image.open(comfyui.base / "output" / saved["filename"]) as image:
            pixel = image.getpixel((9, 9))
        assert max(abs(a - b) for a, b in zip(pixel, color, strict=True)) <= 3
    assert len(outcome.warnings) == len(skipped)
    for name, photos in skipped.items():
        (warning,) = (text for text in outcome.warnings if f"the format {name}" in text)
        assert warning.startswith(
            f"Photos in {folder} are not used, because the format {name} cannot be read {photos}. "
            "To read such photos, run "
        )
        assert f"Warning: {warning}" in outcome.last_texts["2"].splitlines()
        assert warning in comfyui.log.read_text()
