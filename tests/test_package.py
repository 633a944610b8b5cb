"""The files that `comfy node pack` ships: none does what the registry flags or bans."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
HOSTS_OWN = {"torch", "torchvision", "torchaudio", "numpy", "pillow", "transformers"}
"""ComfyUI installs these. With another release of them it may no longer start."""
CALLS = {"exec", "eval", "compile", "__import__"}
MODULES = {
    "aiohttp", "cloudpickle", "code", "codeop", "ctypes", "dill", "ftplib", "http", "httpx",
    "huggingface_hub", "imaplib", "joblib", "marshal", "multiprocessing", "pickle", "poplib", "pty",
    "requests", "runpy", "shelve", "smtplib", "socket", "ssl", "subprocess", "telnetlib",
    "torch.hub", "torch.multiprocessing", "torch.package", "torch.utils.cpp_extension", "urllib",
    "urllib3", "webbrowser", "websocket", "websockets", "xmlrpc",
}  # fmt: skip
NAMES = {
    "os": {"system", "popen", "putenv", "unsetenv", "fork", "forkpty", "startfile"},
    "asyncio": {"create_subprocess_exec", "create_subprocess_shell", "open_connection"},
    "concurrent.futures": {"ProcessPoolExecutor"},
}
"""Banned names in modules that are otherwise allowed; also `os.exec*`, `os.spawn*` and
`os.posix_spawn*`."""
HARMLESS = {("pickle", "UnpicklingError"), ("pickle", "PickleError"), ("aiohttp", "web")}
"""Exceptions that other libraries raise, and aiohttp's server side, which makes no requests."""
REQUIRED_ARGUMENT = {"torch.load": "weights_only", ".from_pretrained": "local_files_only"}
"""The argument that must be True in calls that end like this: without it the call may run code or
download files."""
STARTS_PROCESS = re.compile(r"(exec|spawn|posix_spawn)[lvpe]*$")


@pytest.fixture(scope="module")
def shipped() -> list[Path]:
    """The files of the zip."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("git lists the shipped files, and this is not a git checkout")
    return files_to_ship(ROOT)


def files_to_ship(root: Path) -> list[Path]:
    """Git's files, including those not yet committed, except those in .comfyignore."""
    pathspec = pytest.importorskip("pathspec", reason="reads .comfyignore; installed with mypy")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    ignored = pathspec.PathSpec.from_lines(
        "gitignore", (root / ".comfyignore").read_text("utf-8").splitlines()
    )
    paths = [root / name for name in names.split("\0") if name and not ignored.match_file(name)]
    return sorted(path for path in paths if path.exists())


@pytest.fixture(scope="module")
def modules(shipped) -> dict[str, ast.Module]:
    """Each shipped Python file, parsed."""
    return {
        path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8"))
        for path in shipped
        if path.suffix == ".py"
    }


@pytest.fixture(scope="module")
def project() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def faults(tree: ast.Module) -> Iterator[str]:
    """Yield what the registry flags or bans, such as "line 3: eval"."""
    aliases = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    for node in ast.walk(tree):
        for fault in _faults_of(node, aliases):
            yield f"line {node.lineno}: {fault}"


def _faults_of(node: ast.AST, aliases: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS:
        yield node.func.id
    elif isinstance(node, ast.Call):
        yield from _missing_argument(node)
    elif isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_banned(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
        for alias in node.names:
            if (node.module, alias.name) not in HARMLESS and (
                _is_banned(node.module)
                or _is_banned(f"{node.module}.{alias.name}")
                or _is_banned_name(node.module, alias.name)
            ):
                yield f"{node.module}.{alias.name}"
    elif isinstance(node, ast.Attribute):
        module = aliases.get(ast.unparse(node.value), "")
        if _is_banned_name(module, node.attr) or _is_banned(f"{module}.{node.attr}"):
            yield f"{module}.{node.attr}"
        if node.attr == "environ" and module == "os":
            yield "os.environ"


def _missing_argument(call: ast.Call) -> Iterator[str]:
    given = {word.arg for word in call.keywords if ast.unparse(word.value) == "True"}
    for end, argument in REQUIRED_ARGUMENT.items():
        if ast.unparse(call.func).endswith(end) and argument not in given:
            yield f"{end} without {argument}=True"


def _is_banned(module: str) -> bool:
    return module.split(".")[0] in MODULES or module in MODULES


def _is_banned_name(module: str, name: str) -> bool:
    if module == "os" and (name == "environ" or STARTS_PROCESS.match(name)):
        return True
    return name in NAMES.get(module, ())


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("eval('1')", "eval"),
        ("exec(compile('1', '', 'exec'))", "compile"),
        ("import subprocess", "subprocess"),
        ("import urllib.request as r", "urllib.request"),
        ("from urllib import request", "urllib.request"),
        ("import os as o\no.system('ls')", "os.system"),
        ("from os import execvp", "os.execvp"),
        ("import os\nos.spawnl(0, 'ls')", "os.spawnl"),
        ("import os\nos.environ['A'] = 'b'", "os.environ"),
        ("from os import environ", "os.environ"),
        ("import os\nos.environ.setdefault('A', 'b')", "os.environ"),
        ("import torch.multiprocessing", "torch.multiprocessing"),
        ("from torch import multiprocessing", "torch.multiprocessing"),
        ("import torch\ntorch.multiprocessing.spawn(f)", "torch.multiprocessing"),
        ("from concurrent.futures import ProcessPoolExecutor", "ProcessPoolExecutor"),
        ("import pickle", "pickle"),
        ("from pickle import loads", "pickle.loads"),
        ("import asyncio\nasyncio.create_subprocess_exec('ls')", "create_subprocess_exec"),
        ("from torch import hub", "torch.hub"),
        ("import torch\ntorch.load(path)", "torch.load without weights_only=True"),
        ("torch.load(path, weights_only=False)", "torch.load without weights_only=True"),
        ("Model.from_pretrained(path)", ".from_pretrained without local_files_only=True"),
    ],
)
def test_the_search_finds(code, fault):
    assert any(found.endswith(fault) for found in faults(ast.parse(code))), code


@pytest.mark.parametrize(
    "code",
    [
        "import re\nre.compile('a')",
        "import torch\ntorch.compile(model)\nmodel.eval()",
        "import os\nos.path.join('a', 'b')\nos.replace('a', 'b')",
        "from concurrent.futures import ThreadPoolExecutor",
        "from pickle import UnpicklingError",
        "import torch\ntorch.load(path, weights_only=True, mmap=True)",
        "Model.from_pretrained(folder, local_files_only=True)",
        "from . import code, socket",
    ],
)
def test_the_search_accepts(code):
    assert list(faults(ast.parse(code))) == []


def test_shipped_code_starts_nothing_and_reaches_for_nothing(modules):
    """The registry hides packs with dynamic code, processes, network access, changes of the
    environment or pickle."""
    found = {name: list(faults(tree)) for name, tree in modules.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_only_what_users_run_is_shipped(shipped):
    names = {path.relative_to(ROOT).as_posix() for path in shipped}
    assert {
        "LICENSE", "README.md", "__init__.py", "host_version.py", "pyproject.toml",
        "requirements.txt", "nodes/__init__.py", "trainer/__main__.py",
        "trainer/toy/model.safetensors", "trainer/toy/photos/cup_0.png", "web/dreambooth.js",
        "trainer/families/assets/clip_merges.txt", "trainer/families/assets/LICENSE",
        "example_workflows/Toy model, first run.json",
        "example_workflows/Toy model, first run.jpg",
        "example_workflows/Teach a subject.app.json", "subgraphs/Teach a subject (DreamBooth).json",
    } <= names  # fmt: skip
    tops = {name.split("/")[0] for name in names}
    assert tops & {".ci", "tests", "benchmarks", "docs", "requirements", "Makefile"} == set()
    assert [name for name in names if "test" in name.split("/")[-1]] == []


def test_comfy_cli_finds_no_fault_and_ships_the_same_files(shipped, tmp_path):
    if shutil.which("comfy") is None:
        pytest.skip("comfy-cli, which makes the zip, is not installed")
    clean = tmp_path / "clean"
    subprocess.run(["git", "clone", "--quiet", ROOT, clean], check=True)
    comfy = {"cwd": clean, "capture_output": True, "text": True}
    done = subprocess.run(["comfy", "--skip-prompt", "node", "validate"], **comfy)
    output = done.stdout + done.stderr
    assert "All validation checks passed" in output, output
    subprocess.run(["comfy", "--skip-prompt", "node", "pack"], check=True, **comfy)
    expected = {path.relative_to(clean).as_posix() for path in files_to_ship(clean)}
    with zipfile.ZipFile(clean / "node.zip") as archive:
        assert set(archive.namelist()) == expected


def test_no_shipped_module_imports_an_unshipped_one(modules):
    missing = []
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = Path(name).parents[node.level - 1].joinpath(*(node.module or "").split("."))
                for target in [base, *(base / alias.name for alias in node.names)]:
                    file = f"{target.as_posix()}.py"
                    if (ROOT / file).exists() and file not in modules:
                        missing.append(f"{name} imports {file}")
    assert missing == []


COMMAND_LINE_ONLY = {"tyro", "tomli", "tqdm"}


def imports_of(path: Path) -> Iterator[tuple[str, list[Path]]]:
    """Yield the name of each imported package, or "" and the imported files of this pack."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.split(".")[0], []
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            targets = [base, *(base / alias.name for alias in node.names)]
            files = [target / "__init__.py" for target in targets]
            files += [target.with_name(f"{target.name}.py") for target in targets]
            yield "", [file for file in files if file.is_file()]


def reached_from(folder: Path) -> tuple[set[str], set[Path]]:
    """The packages and files that the modules of a folder import, directly or through others, at
    the top of a module or later."""
    packages, seen, waiting = set(), set(), list(folder.rglob("*.py"))
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            for package, files in imports_of(path):
                packages.add(package)
                waiting += files
    return packages, seen


def test_nodes_import_nothing_that_only_the_command_line_needs():
    packages, files = reached_from(ROOT / "nodes")
    assert packages & COMMAND_LINE_ONLY == set()
    assert ROOT / "trainer" / "loop.py" in files
    assert not any(file.is_relative_to(ROOT / "trainer" / "cli") for file in files)
    packages, _ = reached_from(ROOT / "trainer" / "cli")
    assert packages >= COMMAND_LINE_ONLY


def test_shipped_scripts_are_readable_and_load_nothing_from_other_sites(shipped):
    for path in shipped:
        if path.suffix in (".js", ".mjs"):
            text = path.read_text("utf-8")
            assert max(map(len, text.splitlines())) <= 200, path
            # The address of SVG is a name, which nothing loads.
            text = text.replace("http://www.w3.org/2000/svg", "")
            assert not re.search(r"https?://|\beval\(|new Function|importScripts", text), path


def test_the_zip_stays_small(shipped):
    sizes = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in shipped}
    big = {name for name, size in sizes.items() if size > 1_000_000}
    assert big <= {
        "trainer/toy/model.safetensors",
        "trainer/toy/judge.safetensors",
        "trainer/families/assets/clip_merges.txt",
    }
    assert sum(sizes.values()) < 40_000_000


def read_requirements(path: Path) -> Iterator[Requirement]:
    """The requirements in a file and in the files that it includes."""
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("--requirement="):
            yield from read_requirements(path.parent / line.removeprefix("--requirement="))
        elif line and not line.startswith("#"):
            yield Requirement(line)


def test_both_lists_of_requirements_are_the_same(project):
    """The registry reads one of them, ComfyUI-Manager the other."""
    listed = list(read_requirements(ROOT / "requirements.txt"))
    assert listed == [Requirement(line) for line in project["project"]["dependencies"]]


def test_every_included_requirements_file_is_shipped(shipped):
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    included = {line.partition("=")[2] for line in lines if line.startswith("--requirement=")}
    assert included == {"requirements-diffusers.txt"}
    assert included <= {path.name for path in shipped if path.parent == ROOT}


def test_no_version_of_what_the_host_brings_is_required(project):
    """A name without a version never changes an installed package."""
    optional = project["project"]["optional-dependencies"].values()
    lines = [*project["project"]["dependencies"], *(line for some in optional for line in some)]
    required = [Requirement(line) for line in lines]
    assert {str(each.specifier) for each in required if each.name.lower() in HOSTS_OWN} == {""}


def test_diffusers_has_no_upper_bound_and_is_installed_together_with_transformers():
    """An upper bound would downgrade a newer release. Without transformers before it in the same
    call, pip would upgrade huggingface_hub past what an installed transformers 4 accepts."""
    transformers, diffusers = read_requirements(ROOT / "requirements-diffusers.txt")
    assert str(transformers) == "transformers"
    assert diffusers.name == "diffusers"
    assert {each.operator for each in diffusers.specifier} == {">="}


def test_the_metadata_of_the_registry(project):
    comfy = project["tool"]["comfy"]
    assert comfy.keys() >= {"PublisherId", "DisplayName", "requires-comfyui"}
    # ComfyUI would load every script twice: it knows the folder from WEB_DIRECTORY already.
    assert "web" not in comfy
    tree = ast.parse((ROOT / "host_version.py").read_text("utf-8"))
    minimum = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "MINIMUM"
    )
    assert comfy["requires-comfyui"] == f">={minimum['ComfyUI']}"
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", project["project"]["name"])
    assert "comfyui" not in project["project"]["name"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["project"]["version"])


def test_every_workflow_has_a_thumbnail_and_its_folder_holds_nothing_else():
    folder = ROOT / "example_workflows"
    names = {path.stem for path in folder.glob("*.json")}
    assert names == {path.stem for path in folder.glob("*.jpg")} != set()
    assert {path.suffix for path in folder.iterdir()} == {".json", ".jpg"}
    for name in names:
        assert json.loads((folder / f"{name}.json").read_text("utf-8"))["version"] == 0.4
