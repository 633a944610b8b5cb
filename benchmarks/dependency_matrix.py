"""Check that ComfyUI still works after this pack is installed: `python -m
benchmarks.dependency_matrix [FOLDER] [--at-once]`.

For each kind of host, the program creates a virtual environment in the folder and installs
requirements.txt line by line, as ComfyUI-Manager does (--at-once: in one call of pip, as users
do by hand). It then checks that transformers, diffusers and the trainer work there, and prints
which packages the installation changed. The exit code is 1 if a host broke or lost a version."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

ROOT = Path(__file__).parents[1]
TORCH = "torch==2.13.0"
HOSTS = {
    "transformers 4": ("transformers==4.57.6", "huggingface_hub==0.36.2"),
    "transformers 5": ("transformers==5.23.0", "huggingface_hub==2.4.0"),
    "transformers 4, old diffusers": (
        "transformers==4.57.6", "huggingface_hub==0.36.2", "diffusers==0.32.2",
    ),
    "transformers 5, old diffusers": (
        "transformers==5.23.0", "huggingface_hub==2.4.0", "diffusers==0.32.2",
    ),
    "transformers 5, new diffusers": (
        "transformers==5.23.0", "huggingface_hub==2.4.0", "diffusers==0.42.1",
    ),
    "newest releases": ("transformers", "huggingface_hub", "diffusers"),
}  # fmt: skip
"""The packages that a host has before this pack is installed: those of ComfyUI, and those that
other packs may have installed."""
NEVER_CHANGED = {"torch", "numpy", "pillow", "transformers", "tokenizers", "safetensors"}
IMPORTS = (
    "from transformers import CLIPTextModel, CLIPTokenizer; "
    "from diffusers import AutoencoderKL, UNet2DConditionModel; "
    "import pytorch_optimizer, matplotlib.figure"
)


class Host:
    """A virtual environment in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)

    def install(self, *requirements: str) -> None:
        self.run("-m", "pip", "install", "--quiet", *requirements)

    def versions(self) -> dict[str, str]:
        """The version of each installed package."""
        listed = self.run("-m", "pip", "list", "--format", "json")
        return {entry["name"].lower(): entry["version"] for entry in json.loads(listed)}

    def try_out(self) -> None:
        """Import the libraries, train for two steps and sample. Raises CalledProcessError if any
        of these fails."""
        self.run("-c", IMPORTS)
        photo = ROOT / "trainer" / "toy" / "photos" / "cup_0.png"
        out = self.folder / "out"
        for optimizer in ("AdamW", "Lion"):
            self.run(
                "-m", "trainer", "train", "--base", "toy", "--dataset.photos", str(photo),
                "--dataset.prompt", "a photo of sks cup", "--output.folder", str(out),
                "--output.name", optimizer, "--optimizer.name", optimizer,
                "--optimizer.learning-rate", "1e-4", "--steps", "2", "--batch-size", "1",
                "--method.train-text-encoder",
            )  # fmt: skip
        self.run(
            "-m", "trainer", "sample", "--checkpoint", str(out / "AdamW.safetensors"),
            "--prompts", "a photo of sks cup", "--schedulers", "DDIM", "LMSDiscrete",
            "--steps", "2", "--folder", str(out),
        )  # fmt: skip
        assert len(list(out.glob("*.png"))) == 2, "images are missing"

    def run(self, *arguments: str) -> str:
        command = [str(self.folder / "bin" / "python"), *arguments]
        return subprocess.run(command, cwd=ROOT, check=True, text=True, capture_output=True).stdout


def visit(host: Host, packages: tuple[str, ...], *, at_once: bool) -> list[str]:
    """Install the host's packages, then this pack's. Return the faults found afterwards."""
    host.install(TORCH, "numpy", "pillow", *packages)
    before = host.versions()
    install_requirements(host, at_once=at_once)
    after = host.versions()
    changed = {name for name, version in before.items() if after.get(name) != version}
    for name in sorted({"torch", "transformers", "huggingface_hub", "diffusers", *changed}):
        say(f"  {name:16} {before.get(name, '-'):>10} -> {after.get(name, '-')}")
    faults = [f"{name} was changed" for name in sorted(NEVER_CHANGED & changed)]
    faults += [
        f"{name} was downgraded"
        for name in sorted(changed)
        if Version(after.get(name, "0")) < Version(before[name])
    ]
    try:
        host.try_out()
    except subprocess.CalledProcessError as error:
        faults.append(f"{' '.join(error.cmd[1:])}:\n{error.stderr}")
    return faults


def install_requirements(host: Host, *, at_once: bool) -> None:
    if at_once:
        host.install("-r", "requirements.txt")
        return
    for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            host.install(line)


def say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("out/hosts"))
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    broken = 0
    for name, packages in HOSTS.items():
        say(name)
        host = Host(options.folder.resolve() / name.replace(" ", "_"))
        faults = visit(host, packages, at_once=options.at_once)
        say("\n".join(f"  BROKEN: {fault}" for fault in faults) or "  works")
        broken += bool(faults)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
