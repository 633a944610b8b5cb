"""The pack's entry point, without ComfyUI or in a ComfyUI that is too old."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LOAD = """
import importlib.util, logging, sys
logging.basicConfig(format="%(message)s")
root = sys.argv[1]
spec = importlib.util.spec_from_file_location("/nodes/pack", root + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules["/nodes/pack"] = pack
spec.loader.exec_module(pack)
print(sorted(set(vars(pack)) & {"comfy_entrypoint", "NODE_CLASS_MAPPINGS", "WEB_DIRECTORY"}))
"""


def load(folder):
    """Load the pack as ComfyUI does, with its path as the module's name and `folder` on the import
    path. Return what was written to stdout and to stderr."""
    command = [sys.executable, "-c", LOAD, str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip(), done.stderr.strip()


def host_version():
    spec = importlib.util.spec_from_file_location("host_version", ROOT / "host_version.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_comfyui_the_pack_imports_without_messages(tmp_path):
    assert load(tmp_path) == ("['WEB_DIRECTORY']", "")


def test_a_comfyui_too_old_for_these_nodes_logs_one_line(tmp_path):
    (tmp_path / "comfyui_version.py").write_text('__version__ = "0.3.40"\n')
    (tmp_path / "folder_paths.py").write_text("")
    assert load(tmp_path) == (
        "['WEB_DIRECTORY']",
        "DreamBooth for ComfyUI needs ComfyUI 0.21.0 or newer, found 0.3.40. Its nodes are not "
        "loaded. Update ComfyUI.",
    )


def test_a_comfyui_without_a_version_logs_it_too(tmp_path):
    (tmp_path / "folder_paths.py").write_text("")
    assert load(tmp_path)[1] == (
        "DreamBooth for ComfyUI needs ComfyUI 0.21.0 or newer, found 0.3.10 or older. Its nodes "
        "are not loaded. Update ComfyUI."
    )


@pytest.mark.parametrize("version", ["0.21.0", "v0.21.1", "0.33.0", "0.100.0", "1.0.0"])
def test_newer_versions_are_accepted(version):
    assert host_version().complaint(version) == ""


@pytest.mark.parametrize("version", ["0.20.1", "0.3.75", "an unknown version"])
def test_older_versions_are_refused(version):
    assert host_version().complaint(version) == (
        f"DreamBooth for ComfyUI needs ComfyUI 0.21.0 or newer, found {version}. Its nodes are not "
        "loaded. Update ComfyUI."
    )


@pytest.mark.parametrize("version", ["2.5.0+cpu", "2.11.0"])
def test_newer_torch_is_accepted(version):
    assert host_version().complaint(version, of="torch") == ""


@pytest.mark.parametrize("version", ["2.4.1+cu121", "1.13.1"])
def test_older_torch_is_refused(version):
    assert host_version().complaint(version, of="torch") == (
        f"DreamBooth for ComfyUI needs torch 2.5.0 or newer, found {version}. Its nodes are not "
        "loaded. Update torch."
    )


@pytest.mark.parametrize(("installed", "found"), [("0.31.0", "0.31.0"), (None, "none")])
def test_old_or_missing_diffusers_is_refused_with_the_command_that_installs_it(
    installed, found, monkeypatch
):
    host, versions = host_version(), {"torch": "2.11.0", "diffusers": installed}
    monkeypatch.setattr(host, "find_version", lambda: "0.33.0")
    monkeypatch.setattr(host.importlib.metadata, "version", lambda name: version_of(name, versions))
    assert host.complaint_here() == (
        f"DreamBooth for ComfyUI needs diffusers 0.32.0 or newer, found {found}. Its nodes are not "
        f'loaded. Install it with \'"{sys.executable}" -m pip install -r '
        f'"{ROOT / "requirements-diffusers.txt"}"\'.'
    )
    versions["diffusers"] = "0.42.1"
    assert host.complaint_here() == ""


def version_of(name, versions):
    """As importlib.metadata.version does it."""
    if versions[name] is None:
        raise importlib.metadata.PackageNotFoundError(name)
    return versions[name]


def test_the_web_folder_exists():
    assert (ROOT / "web" / "dreambooth.js").is_file()


def test_the_registry_lists_the_same_version():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-comfyui = ">={host_version().MINIMUM["ComfyUI"]}"' in project
