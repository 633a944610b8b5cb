"""The rules of the house: which module may import which, where tests are, and how long files and
functions may be.

`nodes/` imports `trainer/`, never the other way round. `trainer/` consists of rooms: its packages
and the modules at its top. `LAYERS` lists the rooms from bottom to top."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
TRAINER, TESTS = ROOT / "trainer", ROOT / "tests" / "trainer"
COMFYUI = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server",
    "execution", "aiohttp",
}  # fmt: skip
NODES_MAY_IMPORT = {"comfy_api"}
"""What every node may import from ComfyUI. The rest is for host.py, and folder_paths also for
folders.py."""
HEAVY = {"diffusers", "transformers"}
HEAVY_ROOMS = ("families/", "sampling/schedulers.py", "evaluation/encoders.py", "toy/")
LAYERS = [
    {
        "storage",
        "noise",
        "precision",
        "weights",
        "eight_bit",
        "hardware",
        "observer",
        "packages",
        "processes",
        "console",
    },
    {"settings"},
    {"families"},
    {"data", "memory", "checkpoint", "optimization"},
    {"methods", "sampling"},
    {"training"},
    {"planning"},
    {"evaluation"},
    {"conversion"},
    {"runs"},
    {"loop"},
    {"follower"},
    {"toy"},
    {"cli"},
    {"__main__"},
]
"""A room imports from itself and from the lines above its own. Rooms on one line do not know each
other."""
FAMILY_CONTRACT = {
    "families.base", "families.embedding", "families.lora_file", "families.lora_layers",
    "families.tokenizer",
}  # fmt: skip
"""What all model families share. Other modules of families/ belong to one family or to loading."""
MAX_FILE = 300
MAX_FUNCTION, LONG_BY_NATURE = 60, "define_schema"
MAX_MEDIAN, MAX_PERCENTILE_90 = 8, 22
"""Lines. `define_schema` is a list of a node's widgets."""
WITHOUT_TESTS = {"__init__", "__main__", "observer"}
"""observer.py only declares methods that do nothing."""
WITHOUT_MODULE = {
    "awkward_paths", "clip_skip", "confinement", "data/conversions", "devices", "fake_device",
    "full_disk", "main", "optimization", "poor_systems", "real_size",
}  # fmt: skip
"""Test modules in tests/trainer for several rooms together, for `__main__` and for the tests' own
fake device."""


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imports(tree: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """Yield the number of leading dots, the module and the imported names of each import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def packages(tree: ast.AST) -> set[str]:
    """The packages of absolute imports."""
    return {module.split(".")[0] for level, module, _ in imports(tree) if level == 0}


@cache
def at_start(path: Path) -> ast.Module:
    """The code that runs when a module is imported: no function bodies, no `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return tree


def imported_modules(path: Path, tree: ast.AST) -> Iterator[Path]:
    """Yield the modules of trainer/ that the relative imports of one of them name. A package stands
    for its __init__.py."""
    for level, module, names in imports(tree):
        if level:
            base = path.parents[level - 1].joinpath(*module.split("."))
            submodules = [found for name in names if (found := module_file(base / name))]
            # A package's __init__.py runs before its submodules, but counts only where the import
            # uses a name that it defines.
            own = module_file(base)
            if own and own != TRAINER / "__init__.py" and len(submodules) < len(names):
                yield own
            yield from submodules


def module_file(path: Path) -> Path | None:
    """The file of a module or package without its ending, None if there is no such file."""
    candidates = path.with_name(f"{path.name}.py"), path / "__init__.py"
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def room(path: Path) -> str:
    return path.relative_to(TRAINER).parts[0].removesuffix(".py")


def functions(paths: Iterable[Path]) -> Iterator[tuple[str, str, int]]:
    """Yield file, name and number of lines of each function and method."""
    for path in paths:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name(path), node.name, node.end_lineno - node.lineno + 1


EVERYWHERE = [*modules(TRAINER), *modules(ROOT / "nodes")]


# --- Who imports whom ---------------------------------------------------------------------------


def test_the_trainer_does_not_import_comfyui():
    for path in modules(TRAINER):
        assert packages(parse(path)) & COMFYUI == set(), name(path)


def test_nodes_import_comfyui_only_through_two_files():
    allowed = {"nodes/host.py": COMFYUI, "nodes/folders.py": {"folder_paths"}}
    for path in modules(ROOT / "nodes"):
        assert packages(parse(path)) & COMFYUI <= allowed.get(name(path), NODES_MAY_IMPORT), name(
            path
        )


def test_imports_inside_the_pack_are_relative():
    ours = {"trainer", "nodes", "host_version"}
    for path in [*EVERYWHERE, ROOT / "__init__.py", ROOT / "host_version.py"]:
        assert packages(parse(path)) & ours == set(), name(path)


def test_heavy_libraries_are_imported_in_few_rooms_and_inside_functions():
    """ComfyUI imports the pack when it starts, which must not load these libraries."""
    for path in EVERYWHERE:
        if not name(path).removeprefix("trainer/").startswith(HEAVY_ROOMS):
            assert packages(parse(path)) & HEAVY == set(), name(path)
        assert packages(at_start(path)) & HEAVY == set(), name(path)


def test_rooms_import_only_from_the_layers_below():
    for path in modules(TRAINER):
        used = {room(other) for other in imported_modules(path, parse(path))}
        if path == TRAINER / "__init__.py":
            assert used == set()
            continue
        layer = next(number for number, layer in enumerate(LAYERS) if room(path) in layer)
        assert used <= set().union(*LAYERS[:layer]) | {room(path)}, name(path)


def test_every_room_has_a_layer():
    found = {room(path) for path in modules(TRAINER)} - {"__init__"}
    assert sorted(found) == sorted(each for layer in LAYERS for each in layer)


def test_modules_do_not_import_each_other_in_circles():
    graph = {
        name(path): {name(other) for other in imported_modules(path, at_start(path))} - {name(path)}
        for path in modules(TRAINER)
    }
    assert sum(map(len, graph.values())) > 100
    assert first_circle(graph) == []


def first_circle(graph: Mapping[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_data_and_methods_do_not_know_any_single_family():
    for path in [*modules(TRAINER / "data"), *modules(TRAINER / "methods")]:
        for level, module, names in imports(parse(path)):
            if level and "families" in module.split("."):
                assert module in FAMILY_CONTRACT, name(path)
            assert "families" not in names, name(path)


# --- Where things are ---------------------------------------------------------------------------


def test_every_package_says_what_it_is_for():
    silent = [
        name(path) for path in TRAINER.rglob("__init__.py") if not ast.get_docstring(parse(path))
    ]
    assert silent == []


def test_every_module_has_a_test_module_at_the_same_place():
    missing = [
        name(path)
        for path in modules(TRAINER)
        if path.stem not in WITHOUT_TESTS
        and not (TESTS / path.relative_to(TRAINER).parent / f"test_{path.name}").exists()
    ]
    assert missing == []


def test_every_test_module_of_the_trainer_is_where_its_module_is():
    tested = [
        path.relative_to(TESTS).with_name(path.name.removeprefix("test_"))
        for path in TESTS.rglob("test_*.py")
    ]
    strays = {path.with_suffix("").as_posix() for path in tested if not (TRAINER / path).exists()}
    assert strays == WITHOUT_MODULE


# --- How long things are ------------------------------------------------------------------------


def test_files_are_short():
    lengths = {name(path): len(path.read_text("utf-8").splitlines()) for path in EVERYWHERE}
    assert {path: length for path, length in lengths.items() if length > MAX_FILE} == {}


def test_functions_are_short():
    found = [each for each in functions(EVERYWHERE) if each[1] != LONG_BY_NATURE]
    assert [each for each in found if each[2] > MAX_FUNCTION] == []
    lengths = sorted(length for _, _, length in found)
    assert median(lengths) <= MAX_MEDIAN
    assert lengths[int(0.9 * len(lengths))] <= MAX_PERCENTILE_90
