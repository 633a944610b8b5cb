"""Workflows from strangers: every input that takes a text or a choice, with values that are made to
read or write elsewhere, in a real ComfyUI."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trainer.storage import names
from trainer.toy import MODEL, PHOTOS

pytestmark = [pytest.mark.xdist_group("comfyui"), pytest.mark.posix]

SECRET = "the words of a caption that nobody may read"
NAMES = [
    "", "/", ".", "..", "../..", "{outside}", "{outside}/photos", "{outside}/model.safetensors",
    "{up}{outside}/photos", "{up}{outside}/model.safetensors", "input/..", "input/{outside}/photos",
    "input/{up}{outside}/photos", "input/link", "link", "dreambooth/{up}{outside}/made",
    "file://{outside}/photos", "/dev/zero", "/dev/stdin", "/proc/self/environ", "CON",
    "nul.safetensors", "a/aux/b", "COM\u00b9", "C:\\evil", "C:evil", "\\\\server\\share\\evil",
    "//server/share", "..\\..\\evil", "~/evil", "$HOME/evil", "%APPDATA%\\evil", "a\0b", "\0",
    "a\nb", "x" * 300, "x/" * 600 + "x", "x" * 100_000, "\ud800", "\uff0e\uff0e\uff0fevil",
    "\u2025/evil", "%year%/{up}evil", "%date:/../..%", "%date:" + "y" * 500 + "%", "-rf", " evil ",
    "evil.", "<img src=x onerror=alert(1)>", "[[evil|javascript:alert(1)]]", "{{7*7}}", "%s%n",
]  # fmt: skip
"""Values for inputs that name a file or a folder. `{outside}` is a folder with photos and a model
outside ComfyUI's folders, and `{up}` leads to the root of the file system."""
TEXTS = ["{up}{outside}/photos", "\ud800\0\x1b[2J\u202e<img src=x onerror=alert(1)>{outside}"]
"""Values for all other inputs."""
SHARE = 6
"""Each input gets every sixth of these names, and the next one the names after them. 1: all."""
NAMING = {
    "DreamBoothLoadBaseModel": {"checkpoint"},
    "DreamBoothApplyLoRA": {"lora"},
    "DreamBoothLoadInstanceImages": {"folder"},
    "DreamBoothGenerateClassPriors": {"images.folder"},
    "DreamBoothTrain": {"name"},
    "DreamBoothTextualInversionTrain": {"name"},
    "DreamBoothPreviewSettings": {"judge"},
    "DreamBoothCompareSettings": {"judge"},
    "DreamBoothScoreImages": {"judge"},
    "DreamBoothExtractLoRA": {"name", "judge"},
    "DreamBoothSaveCheckpoint": {"name"},
}
"""The inputs that name a file or a folder."""
NODES = [
    *NAMING, "DreamBoothModelFromGraph", "DreamBoothOptimizerSettings",
    "DreamBoothSampleWithScheduler", "DreamBoothUseTrainedModel",
]  # fmt: skip
REFUSALS = {"ValueError", "FileNotFoundError"}
SMALL = {
    "steps": 1, "batch_size": 1, "preset": "toy", "preset.steps": 1, "preset.batch_size": 1,
    "preset.prior_weight": 0.0, "images.num_images": 1, "images.steps": 1, "images.batch_size": 1,
    "on_existing": "resume",
}  # fmt: skip
"""Values of inputs that make a run short. There is nothing to resume, so nothing is trained."""
WRITABLE = ("output", "models/checkpoints/dreambooth", "models/loras", "temp", "user")
"""Where a workflow may write, besides the files of the embeddings folder."""

DYNAMIC = "COMFY_DYNAMICCOMBO_V3"
Inputs = dict[str, Any]


@pytest.fixture(scope="module")
def outside(comfyui, tmp_path_factory) -> Iterator[Path]:
    """A folder outside ComfyUI's folders, with what nodes want to read."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copytree(PHOTOS, folder / "photos")
    (folder / "photos" / "cup_0.txt").write_text(SECRET)
    shutil.copy(MODEL, folder / "model.safetensors")
    link = comfyui.base / "input" / "link"
    os.symlink(folder / "photos", link)
    yield folder
    link.unlink()


@pytest.fixture
def untouched(comfyui, outside) -> Iterator[None]:
    """After the test nothing outside has been read or changed, and nothing of it was told."""
    made, log = _paths(comfyui.base), comfyui.log.stat().st_size
    paths = [outside, *sorted(outside.rglob("*"))]
    for path in paths:  # Linux records the first time that a file is read after it was changed
        os.utime(path, ns=(0, path.stat().st_mtime_ns))
    before = list(map(_facts, paths))
    yield
    assert list(map(_facts, paths)) == before
    for path in _paths(comfyui.base) - made:
        assert _may_be_made(path), path
        assert [fault for fault in map(names.fault, path.parts) if fault] == [], path
    assert SECRET.encode() not in comfyui.log.read_bytes()[log:]


def _facts(path: Path) -> tuple[int, ...]:
    stat = path.stat()
    return stat.st_atime_ns, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size


def _paths(base: Path) -> set[Path]:
    return {path.relative_to(base) for path in base.rglob("*")}


def _may_be_made(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in WRITABLE)


class Graph:
    """Builds workflows in API form around one of our nodes, from what ComfyUI says of all nodes."""

    SOURCES: ClassVar = {
        "DREAMBOOTH_MODEL": "DreamBoothLoadBaseModel",
        "DREAMBOOTH_DATASET": "DreamBoothLoadInstanceImages",
        "IMAGE": "EmptyImage",
    }
    """The node that gives each type; "Nothing" for all others."""

    def __init__(self, info: Mapping[str, Any], node: str) -> None:
        self._info, self._node = info, node

    def inputs(self) -> dict[str, Inputs]:
        """The inputs that take a text or a choice, with what must be chosen for each to exist."""
        return dict(_named(self._info[self._node]["input"], {}))

    def build(self, name: str, value: str, *, by_wire: bool) -> Inputs:
        """A workflow with a value for an input. Values of a wire are not compared with a menu."""
        graph: Inputs = {}
        given = {**SMALL, **self.inputs()[name], name: ["wire", 0] if by_wire else value}
        if by_wire:
            graph["wire"] = _node("AnyText", {"text": value})
        graph["target"] = _node(self._node, self._fill(self._node, given, graph))
        if not self._info[self._node]["output_node"]:
            graph["end"] = _node("Log", {"text": ["target", 0]})
        return graph

    def _fill(self, node: str, given: Inputs, graph: Inputs) -> Inputs:
        return dict(self._values(self._info[node]["input"], given, graph))

    def _values(
        self, sections: Mapping[str, Any], given: Inputs, graph: Inputs, heading: str = ""
    ) -> Iterator[tuple[str, Any]]:
        for part in ("required", "optional"):
            for short, (kind, options) in _specs(sections, part):
                name = heading + short
                value = given.get(name, _default(kind, options))
                if kind == "COMFY_AUTOGROW_V3":
                    if name == "model_sources":
                        yield f"{name}.model_source0", self._source("DREAMBOOTH_MODEL", graph)
                elif value is not None:
                    yield name, value
                elif part == "required":
                    yield name, self._source(kind, graph)
                for option in _options(options) if kind == DYNAMIC else ():
                    if option["key"] == value:
                        yield from self._values(option["inputs"], given, graph, f"{name}.")

    def _source(self, kind: str, graph: Inputs) -> list[Any]:
        if kind not in graph:
            source = self.SOURCES.get(kind, "Nothing")
            known = source in self._info and source.startswith("DreamBooth")
            graph[kind] = _node(source, self._fill(source, SMALL, graph) if known else {})
            if source == "EmptyImage":
                graph[kind]["inputs"] = {"width": 64, "height": 64, "batch_size": 1, "color": 0}
        return [kind, 0]


def _named(
    sections: Mapping[str, Any], chosen: Inputs, heading: str = ""
) -> Iterator[tuple[str, Inputs]]:
    for part in ("required", "optional"):
        for short, (kind, options) in _specs(sections, part):
            name = heading + short
            if kind in ("STRING", "COMBO", DYNAMIC):
                yield name, chosen
            for option in _options(options) if kind == DYNAMIC else ():
                yield from _named(option["inputs"], {**chosen, name: option["key"]}, f"{name}.")


def _specs(sections: Mapping[str, Any], part: str) -> Iterator[tuple[str, tuple[Any, Inputs]]]:
    for name, spec in sections.get(part, {}).items():
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        is_menu = isinstance(kind, list)
        yield name, ("COMBO", {"options": kind, **options}) if is_menu else (kind, options)


def _options(options: Inputs) -> list[Any]:
    return list(options.get("options", []))


def _default(kind: str, options: Inputs) -> Any:
    if kind in ("COMBO", DYNAMIC):
        first = _options(options)[:1]
        return options.get(
            "default", first[0]["key"] if kind == DYNAMIC else (first or ["none"])[0]
        )
    return options.get("default")


def _node(name: str, inputs: Inputs) -> Inputs:
    return {"class_type": name, "inputs": inputs}


def values(templates: list[str], outside: Path) -> list[str]:
    return [
        text.replace(
            "{outside}", str(outside).lstrip("/") if "{up}" in text else str(outside)
        ).replace("{up}", "../" * 20)
        for text in templates
    ]


# --- What happens ---------------------------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_no_value_of_any_input_reads_or_writes_elsewhere(comfyui, outside, untouched, node):
    graph = Graph(comfyui.get("/object_info"), node)
    naming = NAMING.get(node, set())
    assert naming <= graph.inputs().keys()
    faults = []
    for number, name in enumerate(graph.inputs(), start=NODES.index(node)):
        chosen = NAMES[number % SHARE :: SHARE] if name in naming else [TEXTS[number % 2]]
        for value in values(chosen, outside):
            outcome = comfyui.run(graph.build(name, value, by_wire=True))
            assert SECRET not in str(outcome.events)
            if outcome.end != "execution_success":
                kind = outcome.events[-1][1].get("exception_type")
                if kind not in REFUSALS or not outcome.error[1].endswith("."):
                    faults.append((name, value[:60], kind, outcome.error[1][:200]))
    assert faults == []


def test_every_node_is_tried(comfyui):
    ours = {name for name in comfyui.get("/object_info") if name.startswith("DreamBooth")}
    assert ours == set(NODES)


def test_names_that_are_not_in_a_menu_are_not_queued(comfyui, outside, untouched):
    info = comfyui.get("/object_info")
    menus = [(node, name) for node, found in NAMING.items() for name in found if name != "name"]
    for node, name in menus:
        graph = Graph(info, node)
        for value in values([each for each in NAMES if each != "input/link"], outside):
            status, answer = comfyui.post(
                "/prompt", {"prompt": graph.build(name, value, by_wire=False)}
            )
            errors = answer["node_errors"]["target"]["errors"]
            assert (status, [each["type"] for each in errors]) == (400, ["value_not_in_list"]), name
