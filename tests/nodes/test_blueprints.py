"""Every subgraph blueprint is found in the search box, names only inputs and choices that exist,
and runs to the end as it is. The files alone are checked everywhere, the rest in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.test_example_workflows import (
    SHORT,
    WIDGETS,
    fields,
    has_content,
    is_allowed,
    overlapping,
    saving,
    widget_inputs,
    widgets,
)
from tests.test_search import is_found

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "subgraphs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
INPUTS, OUTPUTS = -10, -20
"""The ids that links have at the borders of a subgraph."""
TEACH = "Teach a subject (DreamBooth)"
WORDS = ("teach", "teach subject", "dreambooth")
"""What is written into the search box. The page only compares it with the blueprint's file name."""


def read(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the node that stands for the subgraph, and the subgraph."""
    content = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    (node,), (subgraph,) = content["nodes"], content["definitions"]["subgraphs"]
    return node, subgraph


def ends(subgraph: dict[str, Any]) -> Iterator[tuple[int, int, int, int, int, str]]:
    """Yield each link: its id, the node and slot where it begins and ends, and its type."""
    for link in subgraph["links"]:
        yield (
            link["id"], link["origin_id"], link["origin_slot"], link["target_id"],
            link["target_slot"], link["type"],
        )  # fmt: skip


# --- Without ComfyUI ----------------------------------------------------------------------------


def test_these_blueprints_exist():
    assert NAMES == [TEACH]


@pytest.mark.parametrize("words", WORDS)
def test_these_words_find_the_blueprint(words):
    assert is_found(words, TEACH)


@pytest.mark.parametrize("name", NAMES)
def test_links_agree_with_the_sockets_at_both_ends(name):
    _, subgraph = read(name)
    nodes = {node["id"]: node for node in subgraph["nodes"]}
    leaving = {
        (link, INPUTS, slot, border["type"])
        for slot, border in enumerate(subgraph["inputs"])
        for link in border["linkIds"]
    }
    arriving = {
        (link, OUTPUTS, slot, border["type"])
        for slot, border in enumerate(subgraph["outputs"])
        for link in border["linkIds"]
    }
    for node in nodes.values():
        for slot, output in enumerate(node["outputs"]):
            leaving |= {(link, node["id"], slot, output["type"]) for link in output["links"] or []}
        for slot, socket in enumerate(node["inputs"]):
            if socket["link"] is not None:
                arriving.add((socket["link"], node["id"], slot, socket["type"]))
    links = list(ends(subgraph))
    assert leaving == {(link, source, out, kind) for link, source, out, *_, kind in links}
    assert arriving == {(link, target, into, kind) for link, *_, target, into, kind in links}
    assert subgraph["state"]["lastNodeId"] == max(nodes)
    assert subgraph["state"]["lastLinkId"] == max(link[0] for link in links)


@pytest.mark.parametrize("name", NAMES)
def test_the_node_has_the_inputs_and_outputs_of_its_subgraph(name):
    node, subgraph = read(name)
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == name
    for side in ("inputs", "outputs"):
        assert [(each["name"], each["type"]) for each in node[side]] == [
            (each["name"], each["type"]) for each in subgraph[side]
        ]
    shown = [each["widget"]["name"] for each in node["inputs"]]
    assert shown == [each["name"] for each in subgraph["inputs"]]
    nodes = {inner["id"]: inner for inner in subgraph["nodes"]}
    assert node["properties"]["proxyWidgets"][: len(shown)] == [
        [str(target), nodes[target]["inputs"][into]["widget"]["name"]]
        for _, source, _, target, into, _ in ends(subgraph)
        if source == INPUTS
    ]


@pytest.mark.parametrize("name", NAMES)
def test_nodes_do_not_overlap(name):
    _, subgraph = read(name)
    assert overlapping(subgraph["nodes"]) == []


# --- Against the definitions of a real ComfyUI --------------------------------------------------


@pytest.fixture(scope="module")
def definitions(comfyui) -> dict[str, Any]:
    return comfyui.get("/object_info")


def test_comfyui_lists_them(comfyui):
    found = comfyui.get("/global_subgraphs").values()
    ours = [each["name"] for each in found if each["source"] == "custom_node"]
    assert sorted(ours) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_input_exists_with_its_type_and_has_what_it_needs(name, definitions):
    _, subgraph = read(name)
    for node in subgraph["nodes"]:
        definition = definitions[node["type"]]
        expected = {field[0]: field for field in fields(definition, node["widgets_values"])}
        for socket in node["inputs"]:
            kind = expected[socket["name"]][1]
            assert socket["type"] == kind, f"{node['type']}.{socket['name']}"
            assert ("widget" in socket) == (kind in WIDGETS)
        linked = {socket["name"] for socket in node["inputs"] if socket["link"] is not None}
        for field, kind, _, is_required in expected.values():
            assert field in linked or kind in WIDGETS or not is_required, f"{node['type']}.{field}"
        types = [output["type"] for output in node["outputs"]]
        assert types in ([], list(definition["output"])), node["type"]


@pytest.mark.parametrize("name", NAMES)
def test_every_widget_has_a_value_that_it_accepts(name, definitions):
    _, subgraph = read(name)
    for node in subgraph["nodes"]:
        slots = widgets(definitions[node["type"]], node["widgets_values"])
        for value, (field, kind, options) in zip(node["widgets_values"], slots, strict=True):
            assert is_allowed(value, kind, options), f"{node['type']}.{field} is {value!r}"


# --- Run in a real ComfyUI ----------------------------------------------------------------------


def to_api(name: str, definitions: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return the subgraph as the page sends it, with other values for some widgets."""
    node, subgraph = read(name)
    sources = {link: [f"{node['id']}:{source}", out] for link, source, out, *_ in ends(subgraph)
               if source != INPUTS}  # fmt: skip
    prompt = {}
    for inner in subgraph["nodes"]:
        inputs = widget_inputs(inner, definitions, changes)
        inputs |= {
            socket["name"]: sources[socket["link"]]
            for socket in inner["inputs"]
            if socket["link"] in sources
        }
        prompt[f"{node['id']}:{inner['id']}"] = {"class_type": inner["type"], "inputs": inputs}
    return prompt


def test_the_words_become_the_prompts_and_the_name(comfyui, definitions):
    prompt = to_api(TEACH, definitions, **SHORT)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    (number,) = saving(prompt)
    images = outcome.outputs(number)["images"]
    assert len(images) == 4
    for saved in images:
        assert has_content(comfyui.base / "output" / saved["subfolder"] / saved["filename"])
    (train,) = [key for key, node in prompt.items() if node["class_type"] == "DreamBoothTrain"]
    (view,) = outcome.outputs(train)["dreambooth"]
    assert view["file"] == "dreambooth/sks-cup.safetensors"
    assert view["previews"][-1]["prompts"] == [
        "a photo of sks cup on the beach",
        "a photo of sks cup at night",
        "a photo of sks cup in the snow",
        "a photo of a cup",
    ]
