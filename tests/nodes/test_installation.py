"""ComfyUI starts whatever is wrong with the installation of the pack, and says what that is."""

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from .conftest import ROOT, ComfyUI, make_base

pytestmark = pytest.mark.xdist_group("comfyui")

EVERY_COPY = ("ComfyUI-DreamBooth", "ComfyUI-DreamBooth-main", "DreamBooth (1) v1.0")
HIDE = """
import importlib.metadata
version = importlib.metadata.version

def hide(name):
    if name == "diffusers":
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = hide
"""
"""Python runs it at its start as sitecustomize.py: diffusers seems not to be installed."""
SORTED = """
import os
listdir = os.listdir
os.listdir = lambda *path: sorted(listdir(*path))
"""
"""As sitecustomize.py: ComfyUI loads the folders in the order of their names."""
OLDER = """
import aiohttp.web
from comfy_api.latest import ComfyExtension
from server import PromptServer

async def finish(request):
    return aiohttp.web.json_response({})

class Extension(ComfyExtension):
    async def on_load(self):
        PromptServer.instance.routes.post("/dreambooth/finish")(finish)

    async def get_node_list(self):
        return []

def comfy_entrypoint():
    return Extension()
"""
"""What the pack did before it looked for other copies, in nodes/__init__.py."""
PAGE = """
const extensions = [], listeners = [];
const app = {
  extensions,
  registerExtension(extension) {
    if (extensions.some(({ name }) => name === extension.name)) throw Error("registered twice");
    extensions.push(extension);
  },
};
const imports = /^import \\{ (.*) \\} from .*$/gm;
const names = [...process.argv[1].matchAll(imports)].flatMap((match) => match[1].split(", "));
const script = process.argv[1].replace(imports, "");
const imported = names.map((name) => (name === "app" ? app : () => listeners.push(name)));
for (const copy of [1, 2]) Function(...names, script)(...imported);
console.log(JSON.stringify([extensions.length, listeners]));
"""
"""JavaScript that loads the script twice into a page that refuses a second extension with the
same name, as ComfyUI's does."""


@pytest.fixture
def server(needs_comfyui, tmp_path):
    """A ComfyUI that has not started, with this pack."""
    server = ComfyUI(make_base(tmp_path / "base"))
    yield server
    server.stop()


@pytest.mark.posix
def test_of_several_copies_one_is_loaded_and_each_other_logs_one_line(server, toy_graph):
    folder = server.base / "custom_nodes"
    for name in EVERY_COPY[1:]:
        os.symlink(ROOT, folder / name)
    server.start()
    log = server.log.read_text()
    lines = [line for line in log.splitlines() if "installed twice" in line]
    assert len(lines) == len(EVERY_COPY) - 1
    (first,) = [name for name in EVERY_COPY if all(f"in '{folder / name}' and" in x for x in lines)]
    for name in set(EVERY_COPY) - {first}:
        message = (
            f"DreamBooth for ComfyUI is installed twice, in '{folder / first}' and in "
            f"'{folder / name}'. The nodes of the first are loaded. Remove one of the two folders, "
            "then restart ComfyUI."
        )
        assert len([line for line in lines if line.endswith(message)]) == 1
    assert "Traceback" not in log
    # Each route works, and the page gets one script.
    assert server.post("/dreambooth/finish", {})[0] == 404
    assert server.post("/api/dreambooth/finish", {})[0] == 404
    scripts = [path for path in server.get("/extensions") if path.endswith("dreambooth.js")]
    assert len(scripts) == 1
    with urllib.request.urlopen(f"http://{server.address}{scripts[0]}") as answer:
        assert b"registerExtension" in answer.read()
    assert server.run(toy_graph()).end == "execution_success"
    for name in set(EVERY_COPY) - {first}:
        (folder / name).unlink()
    server.stop()
    server.start()
    assert "installed twice" not in server.log.read_text()[len(log) :]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("A", "in '{old}' and in '{new}'. The nodes of the first are loaded."),
        ("Z", "in '{new}' and in '{old}'. The nodes of the second, which is older, are loaded."),
    ],
)
def test_an_older_copy_that_looks_for_no_other_is_named(server, name, line):
    """Before or after this one."""
    old = server.base / "custom_nodes" / name
    (old / "nodes").mkdir(parents=True)
    (old / "nodes" / "__init__.py").write_text(OLDER)
    (old / "__init__.py").write_text("from .nodes import comfy_entrypoint")
    (server.base / "sitecustomize.py").write_text(SORTED)
    server.start(PYTHONPATH=str(server.base))
    new = server.base / "custom_nodes" / "ComfyUI-DreamBooth"
    message = (
        f"DreamBooth for ComfyUI is installed twice, {line.format(old=old, new=new)} Remove one of "
        "the two folders, then restart ComfyUI."
    )
    assert server.log.read_text().count(message) == 1
    shutil.rmtree(old)
    server.stop()
    since = len(server.log.read_text())
    server.start()
    assert "installed twice" not in server.log.read_text()[since:]
    assert server.post("/dreambooth/finish", {})[0] == 404


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs scripts, is missing")
def test_a_page_that_loads_the_script_twice_registers_it_once():
    script = (ROOT / "web" / "dreambooth.js").read_text("utf-8")
    done = subprocess.run(["node", "-e", PAGE, script], capture_output=True, text=True)
    assert done.stderr == ""
    assert json.loads(done.stdout) == [1, ["listen", "listenToPhotos", "listenToClassImages"]]


def test_a_missing_package_is_told_at_the_start_and_on_the_node(server, toy_graph):
    (server.base / "sitecustomize.py").write_text(HIDE)
    server.start(PYTHONPATH=str(server.base))
    requirements = server.base / "custom_nodes" / "ComfyUI-DreamBooth" / "requirements.txt"
    outcome = server.run(toy_graph())
    assert outcome.end == "execution_error"
    _, message = outcome.error
    start, end = message.split("-m pip")
    assert start.startswith(
        "DreamBooth for ComfyUI needs other packages: diffusers is not installed. Install them "
        "with '\""
    )
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    assert Path(start.split('"')[1]).resolve() == Path(python).resolve()
    assert end == f' install -r "{requirements}"\', then restart ComfyUI.'
    assert message in server.log.read_text().split("Starting server")[0]
