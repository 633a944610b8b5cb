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


REQUIRED = [
    "transformers", "diffusers", "safetensors", "pytorch-optimizer", "scipy", "psutil", "tqdm",
    "matplotlib", "tyro",
]  # fmt: skip
ONLY_FOR_A_CHOICE = ["pytorch-optimizer", "scipy", "tqdm", "tyro"]
"""A run never needs these, or only for a choice that then says that they are missing."""


@pytest.fixture
def installed(monkeypatch):
    """The version of each package. None: it is not installed."""
    versions = dict.fromkeys(REQUIRED, "999.0")

    def version(name):
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


def package_message(faults):
    return (
        f"DreamBooth for ComfyUI needs other packages: {faults}. Install them with "
        f'\'"{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"\', then restart '
        "ComfyUI."
    )


@pytest.mark.parametrize("name", REQUIRED)
def test_each_missing_package_is_named_with_the_command_that_installs_it(name, installed):
    host = host_version()
    assert host.package_complaint() == ""
    installed[name] = None
    message = package_message(f"{name} is not installed")
    assert host.package_complaint() == message
    for_every_run = host.package_complaint(for_every_run=True)
    assert for_every_run == ("" if name in ONLY_FOR_A_CHOICE else message)


def test_packages_that_are_missing_or_too_old_are_listed_together(installed):
    installed |= {"diffusers": "0.31.0", "tyro": None}
    assert host_version().package_complaint() == package_message(
        "diffusers 0.31.0 is too old, 0.32 or newer is needed; tyro is not installed"
    )


@pytest.mark.parametrize("version", ["0.32.0", "0.32.2.dev0", "0.42.1", "1.0"])
def test_newer_diffusers_is_accepted(version, installed):
    installed["diffusers"] = version
    assert host_version().package_complaint() == ""


@pytest.mark.parametrize(("python", "needed"), [((3, 10, 4), True), ((3, 11, 0), False)])
def test_a_package_for_old_python_is_needed_there_alone(python, needed, installed, monkeypatch):
    installed["tomli"] = None
    monkeypatch.setattr(sys, "version_info", python)
    missing = package_message("tomli is not installed")
    assert host_version().package_complaint() == (missing if needed else "")


def test_the_web_folder_exists():
    assert (ROOT / "web" / "dreambooth.js").is_file()


def test_the_registry_lists_the_same_version():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'requires-comfyui = ">={host_version().MINIMUM["ComfyUI"]}"' in project
