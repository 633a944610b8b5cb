"""The house rules, executed: who imports whom, that every module has its tests, and sizes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAINER = ROOT / "trainer"
COMFYUI = {
    "comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server",
    "execution", "aiohttp",
}  # fmt: skip
NODES_MAY = {"comfy_api"}
"""What any node imports of ComfyUI: the form of a node. The rest of it belongs to host.py, and its
folders to folders.py."""
HEAVY = {"diffusers", "transformers"}
HEAVY_ROOMS = ("families/", "sampling/schedulers.py", "evaluation/encoders.py", "toy/")
LAYERS = [
    {"storage", "noise", "precision", "observer", "packages"},
    {"settings"},
    {"families"},
    {"data", "memory", "checkpoint", "optimization"},
    {"methods", "sampling"},
    {"training"},
    {"evaluation"},
    {"runs"},
    {"loop"},
    {"toy"},
    {"cli"},
    {"__main__"},
]
"""The rooms of trainer/: each imports only from the lines above its own, and from itself."""
MAX_FILE, MAX_FUNCTION = 300, 60
UNTESTED = {"__init__", "__main__", "observer"}
"""The last one says nothing but names."""


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> Iterator[tuple[int, str, list[str]]]:
    """Level of dots, module and imported names of each import, wherever it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name, []
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def packages(tree: ast.AST) -> set[str]:
    """The packages from outside that are imported."""
    return {module.split(".")[0] for level, module, _ in imports(tree) if level == 0}


def rooms(path: Path) -> Iterator[str]:
    """The rooms of trainer/ that one of its modules imports from: files and folders at its top."""
    here = path.relative_to(TRAINER).parts[:-1]
    for level, module, names in imports(parse(path)):
        if level:
            base = here[: len(here) - (level - 1)]
            for target in [module] if module else names:
                full = [*base, *target.split(".")]
                # `from . import MODEL` in toy/__init__.py's room names no module.
                if (TRAINER / full[0]).is_dir() or (TRAINER / f"{full[0]}.py").exists():
                    yield full[0]


EVERYWHERE = [*modules(TRAINER), *modules(ROOT / "nodes")]


def test_the_trainer_knows_nothing_of_comfyui():
    wrong = {name(path): packages(parse(path)) & COMFYUI for path in modules(TRAINER)}
    assert [path for path in wrong if wrong[path]] == []


def test_only_two_files_import_comfyui_itself():
    allowed = {"nodes/host.py": COMFYUI, "nodes/folders.py": {"folder_paths"}}
    for path in modules(ROOT / "nodes"):
        assert packages(parse(path)) & COMFYUI <= allowed.get(name(path), NODES_MAY), name(path)


def test_imports_inside_the_pack_are_relative():
    ours = {"trainer", "nodes", "host_version"}
    for path in [*EVERYWHERE, ROOT / "__init__.py", ROOT / "host_version.py"]:
        assert packages(parse(path)) & ours == set(), name(path)


def test_heavy_libraries_are_imported_in_few_rooms_and_late():
    """At the top of a module only for type checkers: ComfyUI's start-up must not pay for them."""
    for path in EVERYWHERE:
        if not name(path).removeprefix("trainer/").startswith(HEAVY_ROOMS):
            assert packages(parse(path)) & HEAVY == set(), name(path)
        assert packages(at_start(path)) & HEAVY == set(), name(path)


def at_start(path: Path) -> ast.Module:
    """What of a module runs when it is imported."""
    tree = ast.parse(path.read_text("utf-8"))
    tree.body = [node for node in tree.body if not isinstance(node, ast.If)]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Pass()]
    return tree


def test_arrows_point_upwards():
    for path in modules(TRAINER):
        room = path.relative_to(TRAINER).parts[0].removesuffix(".py")
        if room == "__init__":
            assert list(rooms(path)) == []
            continue
        place = next(number for number, layer in enumerate(LAYERS) if room in layer)
        allowed = set().union(*LAYERS[:place]) | {room}
        assert set(rooms(path)) <= allowed, name(path)


OF_ALL_FAMILIES = {"families.base", "families.embedding", "families.tokenizer"}


def test_data_and_methods_see_no_concrete_family():
    for path in [*modules(TRAINER / "data"), *modules(TRAINER / "methods")]:
        for level, module, names in imports(parse(path)):
            if level and "families" in module.split("."):
                assert module in OF_ALL_FAMILIES, name(path)
            assert "families" not in names, name(path)


def test_every_module_has_its_tests():
    tests = ROOT / "tests" / "trainer"
    missing = [
        name(path)
        for path in modules(TRAINER)
        if path.stem not in UNTESTED
        and not (tests / path.relative_to(TRAINER).parent / f"test_{path.name}").exists()
    ]
    assert missing == []


def test_files_and_functions_are_short():
    for path in EVERYWHERE:
        assert len(path.read_text("utf-8").splitlines()) <= MAX_FILE, name(path)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and node.name != "define_schema":
                assert node.end_lineno - node.lineno < MAX_FUNCTION, f"{name(path)} {node.name}"
