"""Every example workflow names only nodes, inputs and choices that exist, and those that need no
checkpoint run to the end. The files alone are checked everywhere, the rest in a real ComfyUI."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = {"MarkdownNote", "Note"}
"""Nodes of the page alone, which are not sent to ComfyUI."""
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3"}
PHOTO_FOLDERS = ("my-character", "my-dog", "my-photos")
"""Folders of photos that the workflows choose, and that exist once a user has dropped photos."""
APP = ".app"
"""Ends the names of workflows that open as apps."""
NEEDS_NO_CHECKPOINT = {
    "Compare schedulers",
    "Find the sweet spot",
    "Teach a subject, toy model.app",
    "Toy model, LoRA",
    "Toy model, first run",
    "Toy model, textual inversion then DreamBooth",
}
NEWER_NODES = {"LoadBackgroundRemovalModel", "RemoveBackground"}
"""ComfyUI's nodes that its oldest supported version lacks."""
OVERTRAINED = "Find the sweet spot"
"""Its training overfits on purpose, with values that no preset has."""
RUN_PANEL = "DreamBoothTrain", "dreambooth_run"
PHOTO_PANEL = "DreamBoothLoadInstanceImages", "dreambooth_photos"
"""The panels, which are widgets of the page alone."""
TRAINING = {"DreamBoothTrain", "DreamBoothTextualInversionTrain"}
CLIENT = """
import runpy, sys
images = runpy.run_path(sys.argv[1])["images"]
for number, files in images.items():
    for place, file in enumerate(files):
        open(f"{sys.argv[2]}/{number}_{place}.png", "wb").write(file)
"""
TITLE = 30
"""Height of a node's title, which is above its place."""
ROW, WIDGET, TEXT_BOX, MARGIN = 20, 24, 54, 14
"""The least heights, in the classic page, of a socket, a widget, and a widget for long texts, and
what a node has besides."""
PANELS = {
    "DreamBoothTrain": 284,
    "DreamBoothTextualInversionTrain": 284,
    "DreamBoothLoadInstanceImages": 164,
    "DreamBoothGenerateClassPriors": 124,
}
"""The least heights in which nodes show their run, their photos or their class images."""
SCREEN = 1600, 840
"""The part of a small screen, in pixels, that is left for the nodes between ComfyUI's bars."""
FILLED, PADDING = 0.75, 10
"""The share of it that an opened template fills, including a margin around the nodes."""
READABLE = 0.6
"""At a smaller zoom, the classic page draws no text."""
SHORT = {"preset.steps": 4, "images.num_images": 4, "every": 2, "save_every": 2, "steps": 2}
"""Inputs that make the workflows short enough for a test."""


@pytest.fixture
def definitions(request, all_definitions) -> dict[str, Any]:
    """Skips a workflow with nodes that this ComfyUI is too old for."""
    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    used = {node["type"] for node in real_nodes(read(name))} if name else set()
    if missing := used & NEWER_NODES - all_definitions.keys():
        pytest.skip(f"this ComfyUI is older than {', '.join(missing)}")
    return all_definitions


@pytest.fixture(scope="module")
def all_definitions(comfyui) -> Iterator[dict[str, Any]]:
    """The inputs and outputs of each node, from a ComfyUI with the files that the notes ask for."""
    made = [comfyui.base / "input" / name for name in PHOTO_FOLDERS]
    for folder in made:
        folder.mkdir()
    for model in [model for name in NAMES for model in models(read(name))]:
        made.append(comfyui.base / "models" / model["directory"] / model["name"])
        made[-1].parent.mkdir(exist_ok=True)
        made[-1].touch()
    yield comfyui.get("/object_info")
    for path in set(made):
        path.rmdir() if path.is_dir() else path.unlink()


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def real_nodes(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def models(workflow: dict[str, Any]) -> list[dict[str, str]]:
    """Return the files that the page offers to download."""
    return [model for node in workflow["nodes"] for model in node["properties"].get("models", [])]


Box = tuple[float, float, float, float]
"""Left, top, width and height."""


def box(node: dict[str, Any]) -> Box:
    """Return the place of a node with its title, which is all that is left of a collapsed one."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE, width, TITLE + (0 if node["flags"].get("collapsed") else height)


def overlapping(nodes: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Return the ids of nodes that overlap, in pairs."""
    return [
        (node["id"], other["id"])
        for number, node in enumerate(nodes)
        for other in nodes[:number]
        if not _apart(box(node), box(other))
    ]


def _apart(one: Box, other: Box) -> bool:
    return any(
        a[axis] >= b[axis] + b[axis + 2] for axis in (0, 1) for a, b in ((one, other), (other, one))
    )


def zoom(boxes: list[Box]) -> float:
    """Return the zoom at which ComfyUI's page opens nodes at these places."""
    left, top = (min(box[axis] for box in boxes) - PADDING for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) + PADDING for axis in (0, 1))
    return FILLED * min(SCREEN[0] / (right - left), SCREEN[1] / (bottom - top))


Field = tuple[str, str, dict[str, Any], bool]
"""Name, type, options, and whether the input is required."""


def fields(definition: dict[str, Any], values: list[Any]) -> list[Field]:
    """Return the inputs in the page's order: the widgets of a menu's choice follow the menu."""
    remaining = iter(values)
    return [
        field
        for group in ("required", "optional")
        for name, spec in definition["input"].get(group, {}).items()
        for field in _fields(name, spec, is_required=group == "required", values=remaining)
    ]


def _fields(name: str, spec: list[Any], *, is_required: bool, values: Iterator) -> Iterator[Field]:
    kind, options = spec[0], (spec[1] if len(spec) > 1 else {})
    if isinstance(kind, list):
        kind, options = "COMBO", {**options, "options": kind}
    if kind == "COMFY_AUTOGROW_V3":
        template = options["template"]
        ((_, inner),) = template["input"]["required"].items()
        for number in range(template["max"]):
            yield f"{name}.{template['prefix']}{number}", inner[0], {}, number < template["min"]
        return
    yield name, kind, options, is_required
    if kind in WIDGETS:
        value = next(values, None)
        if options.get("control_after_generate"):
            next(values, None)
        if kind == "COMFY_DYNAMICCOMBO_V3":
            chosen = next(option for option in options["options"] if option["key"] == value)
            for group in ("required", "optional"):
                for inner, below in chosen["inputs"].get(group, {}).items():
                    yield from _fields(
                        f"{name}.{inner}", below, is_required=group == "required", values=values
                    )


def widgets(definition: dict[str, Any], values: list[Any]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return the widgets that `widgets_values` has a value for, in its order."""
    slots = []
    for name, kind, options, _ in fields(definition, values):
        if kind in WIDGETS:
            slots.append((name, kind, options))
            if options.get("control_after_generate"):
                slots.append((f"{name}'s control", "CONTROL", {}))
    return slots


def is_allowed(value: Any, kind: str, options: dict[str, Any]) -> bool:
    if kind == "COMBO":
        return value in options["options"]
    if kind == "COMFY_DYNAMICCOMBO_V3":
        return value in [option["key"] for option in options["options"]]
    if kind == "CONTROL":
        return value == "fixed"
    if kind in ("INT", "FLOAT"):
        numeric = isinstance(value, int | float if kind == "FLOAT" else int)
        is_number = numeric and not isinstance(value, bool)
        return is_number and options.get("min", value) <= value <= options.get("max", value)
    return isinstance(value, bool if kind == "BOOLEAN" else str)


# --- Without ComfyUI ----------------------------------------------------------------------------


def test_these_workflows_exist():
    assert NAMES == [
        "Compare schedulers",
        "Face preset with class priors",
        "Find the sweet spot",
        "LoRA",
        "Object preset",
        "SDXL LoRA",
        "SDXL face preset",
        "SDXL object preset",
        "SDXL v-prediction model",
        "Sample an embedding",
        "Subject cut out by masks",
        "Teach a subject, toy model.app",
        "Teach a subject.app",
        "Textual inversion then DreamBooth",
        "Toy model, LoRA",
        "Toy model, first run",
        "Toy model, textual inversion then DreamBooth",
        "Train and sample with KSampler",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_with_the_sockets_at_both_ends(name):
    workflow = read(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"])
    links = {link[0]: link[1:] for link in workflow["links"]}
    assert len(links) == len(workflow["links"])
    leaving, arriving = {}, {}
    for node in workflow["nodes"]:
        for slot, output in enumerate(node["outputs"]):
            for link in output["links"] or []:
                leaving[link] = (node["id"], slot, output["type"])
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                arriving[socket["link"]] = (node["id"], slot, socket["type"])
    assert leaving.keys() == arriving.keys() == links.keys()
    for link, (source, out, target, into, kind) in links.items():
        assert leaving[link] == (source, out, kind)
        assert arriving[link] == (target, into, kind)
        assert nodes[source]["order"] < nodes[target]["order"]
    assert workflow["last_node_id"] == max(nodes)
    assert workflow["last_link_id"] == max(links)


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name):
    assert overlapping(read(name)["nodes"]) == []


@pytest.mark.parametrize("name", NAMES)
def test_the_text_of_all_nodes_is_drawn_when_a_template_is_opened(name):
    workflow = read(name)
    boxes = [tuple(group["bounding"]) for group in workflow["groups"]]
    boxes += map(box, workflow["nodes"])
    assert zoom(boxes) >= READABLE


def test_the_zoom_is_that_of_the_page():
    """Seen in ComfyUI: 47 % for nodes of this size where a page leaves 1600 by 913 pixels."""
    assert 913 / SCREEN[1] * zoom([(0, -50, 2150, 1440)]) == pytest.approx(0.47, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_a_note_says_what_to_change(name):
    notes = [node for node in read(name)["nodes"] if node["type"] in NOTES]
    assert [note["type"] for note in notes] == ["MarkdownNote"]
    (text,) = notes[0]["widgets_values"]
    assert text.startswith(f"## {name.removesuffix(APP)}\n")
    assert "**To change" in text
    needed = {model["name"] for model in models(read(name))}
    assert all(model in text for model in needed)
    assert bool(needed) == (name not in NEEDS_NO_CHECKPOINT)


@pytest.mark.parametrize("name", NAMES)
def test_each_saves_images(name):
    kinds = {node["type"] for node in read(name)["nodes"]}
    assert "SaveImage" in kinds


@pytest.mark.parametrize("name", NAMES)
def test_the_pack_s_nodes_exist(name):
    """The ids are read from the node files, because no ComfyUI runs here."""
    ids = {
        node.value.value
        for path in (ROOT / "nodes").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "node_id"
    }
    used = {node["type"] for node in real_nodes(read(name)) if "DreamBooth" in node["type"]}
    assert used <= ids
    assert used


@pytest.mark.parametrize("name", NAMES)
def test_an_app_names_the_widgets_and_the_nodes_that_it_shows(name):
    extra = read(name)["extra"]
    assert extra.get("linearMode", False) == name.endswith(APP)
    nodes = {node["id"]: node for node in read(name)["nodes"]}
    app = extra.get("linearData", {"inputs": [], "outputs": []})
    shown = [(nodes[number], widget) for number, widget, *_ in app["inputs"]]
    for node, widget in shown:
        free = [socket["name"] for socket in node["inputs"] if socket["link"] is None]
        assert widget in free or (node["type"], widget) in (RUN_PANEL, PHOTO_PANEL)
    kinds = {(node["type"], widget) for node, widget in shown}
    assert ({RUN_PANEL, PHOTO_PANEL} <= kinds) == name.endswith(APP)
    assert {nodes[number]["type"] for number in app["outputs"]} <= {"SaveImage"}
    assert bool(app["outputs"]) == name.endswith(APP)


def test_the_page_calls_the_panels_as_the_apps_do():
    assert f'PANEL_WIDGET = "{RUN_PANEL[1]}"' in (ROOT / "web" / "runs.js").read_text("utf-8")
    assert f'WIDGET = "{PHOTO_PANEL[1]}"' in (ROOT / "web" / "photos.js").read_text("utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_preview_image_fits_the_templates_page(name):
    path = FOLDER / f"{name}.jpg"
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (512, 320))
    assert path.stat().st_size < 60_000


# --- Against the definitions of a real ComfyUI --------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_input_and_output_exists_with_its_type(name, definitions):
    for node in real_nodes(read(name)):
        definition = definitions[node["type"]]
        expected = {field[0]: field for field in fields(definition, node["widgets_values"])}
        for socket in node["inputs"]:
            assert socket["name"] in expected, f"{node['type']} has no input {socket['name']}"
            kind = expected[socket["name"]][1]
            assert socket["type"] == kind, f"{node['type']}.{socket['name']}"
            assert ("widget" in socket) == (kind in WIDGETS)
        types = [output["type"] for output in node["outputs"]]
        assert types in ([], list(definition["output"])), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_every_input_that_needs_a_link_has_one(name, definitions):
    for node in real_nodes(read(name)):
        linked = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        for field, kind, _, is_required in fields(
            definitions[node["type"]], node["widgets_values"]
        ):
            assert field in linked or kind in WIDGETS or not is_required, f"{node['type']}.{field}"


@pytest.mark.parametrize("name", NAMES)
def test_every_widget_has_a_value_that_it_accepts(name, definitions):
    """The page reads values by position: one too many would shift all that follow."""
    for node in real_nodes(read(name)):
        slots = widgets(definitions[node["type"]], node["widgets_values"])
        assert len(node["widgets_values"]) == len(slots), node["type"]
        for value, (field, kind, options) in zip(node["widgets_values"], slots, strict=True):
            assert is_allowed(value, kind, options), f"{node['type']}.{field} is {value!r}"


@pytest.mark.parametrize("name", NAMES)
def test_every_node_is_high_enough(name, definitions):
    """The page would enlarge others when it opens the workflow, over the nodes below them."""
    for node in real_nodes(read(name)):
        definition = definitions[node["type"]]
        sockets = sum("widget" not in socket for socket in node["inputs"])
        # The classic page also shows advanced widgets.
        shown = [options for _, _, options in widgets(definition, node["widgets_values"])]
        rows = max(sockets, len(node["outputs"]))
        height = ROW * rows + sum(map(widget_height, shown)) + MARGIN
        height += PANELS.get(node["type"], 0)
        assert node["size"][1] >= height, f"{node['type']} needs {height}"


def widget_height(options: dict[str, Any]) -> int:
    return TEXT_BOX if options.get("multiline") else WIDGET


@pytest.mark.parametrize("name", [name for name in NAMES if name != OVERTRAINED])
def test_the_values_below_a_preset_are_those_of_the_preset(name, definitions):
    for node in real_nodes(read(name)):
        if node["type"] in TRAINING:
            slots = widgets(definitions[node["type"]], node["widgets_values"])
            for value, (field, _, options) in zip(node["widgets_values"], slots, strict=True):
                assert not field.startswith("preset.") or value == options["default"], field


# --- Run in a real ComfyUI ----------------------------------------------------------------------


def to_api(name: str, definitions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the workflow as the page sends it to ComfyUI, with other values for some widgets."""
    workflow = read(name)
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in real_nodes(workflow):
        inputs = widget_inputs(node, definitions, changes)
        for socket in node["inputs"]:
            if socket["link"] is not None:
                inputs[socket["name"]] = sources[socket["link"]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def widget_inputs(
    node: dict[str, Any], definitions: dict[str, Any], changes: dict[str, Any]
) -> dict[str, Any]:
    """Return a node's inputs from its widgets, with other values for some."""
    values = node["widgets_values"]
    slots = widgets(definitions[node["type"]], values)
    inputs = {
        field: changes.get(field, value)
        for value, (field, kind, _) in zip(values, slots, strict=True)
        if kind != "CONTROL"
    }
    if inputs.get("preset") == "auto" and "preset.steps" in changes:
        # It fits the model, and has no widget for the number of steps.
        toy = "LoRA toy" if inputs.get("trains") == "LoRA" else "toy"
        inputs |= {"preset": toy, "preset.steps": changes["preset.steps"]}
    return inputs


def saving(prompt: dict[str, Any]) -> list[str]:
    """Return the ids of the nodes that save images."""
    return [number for number, node in prompt.items() if node["class_type"] == "SaveImage"]


def has_content(path: Path) -> bool:
    """Return whether the image has more than one colour."""
    with Image.open(path) as image:
        return max(high - low for low, high in image.convert("RGB").getextrema()) > 50


@pytest.mark.parametrize("name", sorted(NEEDS_NO_CHECKPOINT))
def test_workflows_that_need_no_checkpoint_run_to_the_end(name, comfyui, definitions):
    prompt = to_api(name, definitions, **SHORT)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    for number in saving(prompt):
        for saved in outcome.outputs(number)["images"]:
            path = comfyui.base / "output" / saved["subfolder"] / saved["filename"]
            assert has_content(path)


def test_comfyuis_own_example_client_receives_the_images(comfyui, definitions, tmp_path):
    """ComfyUI's websocket example runs the toy workflow instead of its own."""
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import websocket"], capture_output=True).returncode:
        pytest.skip(f"websocket-client, which ComfyUI's example client needs, is not in {python}")
    prompt = to_api("Toy model, first run", definitions, seed=1, **SHORT)
    example = Path(os.environ["COMFYUI_PATH"], "script_examples", "websockets_api_example.py")
    client = tmp_path / "client.py"
    client.write_text(with_workflow(example.read_text("utf-8"), prompt, comfyui.address), "utf-8")
    done = subprocess.run([python, "-c", CLIENT, client, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (number,) = saving(prompt)
    images = sorted(tmp_path.glob(f"{number}_*.png"))
    assert len(images) == 4
    assert all(map(has_content, images))


def with_workflow(script: str, prompt: dict[str, Any], address: str) -> str:
    """Return the script with this workflow and address, without the lines that change its own."""
    for pattern, replacement in (
        (r'(?s)(?<=^prompt_text = """).*?(?="""$)', json.dumps(prompt).replace("\\", r"\\")),
        (r'^prompt\["(6|3)"\]\["inputs"\].*$', ""),
        (r'(?<=^server_address = ").*(?="$)', address),
    ):
        script, times = re.subn(pattern, lambda _, text=replacement: text, script, flags=re.M)
        assert times == (2 if replacement == "" else 1), pattern
    return script
