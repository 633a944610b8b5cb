"""The trainer starts no process, opens no connection and writes only into the folders it was given.

The tests run it in a separate process, where Python reports such events to an audit hook, and try
output names that lead elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.__main__ import main

ROOT = Path(__file__).parents[2]
AUDIT = """
import json, os, sys

events = []
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "pty.", "socket.connect", "socket.getaddrinfo", "socket.gethostby",
    "socket.sendto", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod",
    "os.chown", "os.truncate", "os.utime", "shutil.")
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def absolute(path, folder=-1):
    # The path may be relative to an open folder, of which the event has only the descriptor.
    root = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
    return os.path.join(root, os.fsdecode(path))

def record(event, arguments):
    if event.startswith(FORBIDDEN):
        events.append(["forbidden", event, repr(arguments)])
    elif event.startswith(CHANGES):
        # A rename and a link have two paths, and both count.
        paths = [path for path in arguments[:2] if isinstance(path, (str, bytes))]
        folder = arguments[-1] if isinstance(arguments[-1], int) and event != "os.truncate" else -1
        events.extend(["written", event, absolute(path, folder)] for path in paths)
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & TO_WRITE:
        if isinstance(arguments[0], (str, bytes)):
            events.append(["written", event, absolute(arguments[0])])

sys.addaudithook(record)
"""
RUN = """
from trainer.__main__ import main
codes = [main(command) for command in json.loads(sys.argv[1])]
sys.stdout.write("\\n" + json.dumps([codes, events]))
"""
DRAW = """
from trainer.observer import StepReport
from trainer.evaluation.plots import loss_curve
report = StepReport(
    step=1, total_steps=1, loss=1.0, instance_loss=1.0, prior_loss=None, learning_rates={},
    grad_norm=1.0, steps_per_second=1.0, seconds_left=0.0, peak_megabytes=1.0,
)
loss_curve([report])
sys.stdout.write("\\n" + json.dumps([[], events]))
"""

EMBED = """
import numpy, torch
from pathlib import Path
from trainer.evaluation import encoders
for folder in sys.argv[1:]:
    encoder = encoders.load(Path(folder), torch.device("cpu"))
    encoder.embed_images([numpy.zeros((9, 9, 3), numpy.uint8)])
    encoder.embed_prompts(["a dog"])
sys.stdout.write("\\n" + json.dumps([[], events]))
"""


@pytest.fixture
def run_audited(tmp_path: Path):
    """Runs code in a separate process whose home and temporary folder are below `tmp_path`. Returns
    the exit codes, the forbidden events and the paths that were changed."""
    for name in ("home", "temporary"):
        (tmp_path / name).mkdir()

    def run(code: str, *arguments: str) -> tuple[list[int], list[str], set[Path]]:
        environment = {
            **os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary"),
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        for name in [name for name in environment if name.startswith(("XDG_", "MPL", "TORCH"))]:
            del environment[name]
        command = [sys.executable, "-c", AUDIT + code, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        codes, events = json.loads(done.stdout.splitlines()[-1])
        forbidden = [f"{event} {what}" for kind, event, what in events if kind == "forbidden"]
        return codes, forbidden, {Path(what) for kind, _, what in events if kind == "written"}

    return run


@pytest.fixture
def photos(draw_photos, tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos", 1)


@pytest.mark.posix
def test_the_audit_hook_records_processes_connections_and_writes(run_audited, tmp_path: Path):
    _, forbidden, written = run_audited(
        "import subprocess, socket\n"
        "subprocess.run(['true'])\n"
        "os.system('true')\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "except OSError: pass\n"
        "open('out', 'w').close()\n"
        "os.replace('out', 'moved')\n"
        "sys.stdout.write(json.dumps([[], events]))"
    )
    acts = {"subprocess.Popen", "os.system", "socket.getaddrinfo", "socket.connect"}
    assert {line.split()[0] for line in forbidden} - {"os.posix_spawn"} == acts
    assert written == {tmp_path / "out", tmp_path / "moved"}


@pytest.mark.posix
def test_runs_start_no_process_open_no_connection_and_write_only_into_their_folders(
    run_audited, tiny_checkpoint: Path, photos: Path, tmp_path: Path
):
    out = tmp_path / "out"
    shared = ["--device", "cpu"]
    train = [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos),
        "--dataset.prompt", "a photo of sks dog", "--output.folder", str(out), "--steps", "2",
        "--optimizer.learning-rate", "1e-3", "--batch-size", "1", "--output.save-every", "1",
        "--output.state-every", "1", "--output.dtype", "fp32", "--prior.weight", "1",
        "--prior.prompt", "a dog", "--prior.num-images", "1", "--prior.sampling.steps", "1",
        "--preview.prompts", "a dog", "--preview.every", "1", "--preview.sampling.steps", "1",
    ]  # fmt: skip
    sample = [
        "sample", "--checkpoint", str(out / "dreambooth.safetensors"), "--prompts", "a dog",
        "--steps", "1", "--folder", str(out / "samples"),
    ]  # fmt: skip
    codes, forbidden, written = run_audited(RUN, json.dumps([train + shared, sample + shared]))
    assert codes == [0, 0]
    assert forbidden == []
    allowed = (out, tmp_path / "temporary")
    assert [path for path in written if not any(path.is_relative_to(a) for a in allowed)] == []
    assert out / "dreambooth.safetensors" in written
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.posix
def test_drawing_a_chart_starts_only_matplotlibs_font_search(run_audited, tmp_path: Path):
    """matplotlib searches once for each user, and keeps the list in its cache."""
    _, forbidden, written = run_audited(DRAW)
    assert {line.split()[0] for line in forbidden} <= {"subprocess.Popen", "os.posix_spawn"}
    assert all("fc-list" in line or "system_profiler" in line for line in forbidden)
    allowed = ("matplotlib", ".config", ".cache")
    outside = [path for path in written if not path.is_relative_to(tmp_path / "temporary")]
    assert all(any(name in path.parts for name in allowed) for path in outside), outside


@pytest.mark.posix
def test_image_encoders_are_loaded_from_their_folders_without_a_connection(
    run_audited, tmp_path: Path
):
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
    clip = CLIPModel(CLIPConfig(vision_config=small, text_config=small))
    clip.save_pretrained(tmp_path / "clip")
    ViTModel(ViTConfig(**small)).save_pretrained(tmp_path / "dino")
    _, forbidden, written = run_audited(EMBED, str(tmp_path / "clip"), str(tmp_path / "dino"))
    assert forbidden == []
    assert [path for path in written if not path.is_relative_to(tmp_path / "temporary")] == []
    assert list((tmp_path / "home").iterdir()) == []


NAMES = [
    "../evil", "..", "/tmp/evil", "a/../b", "a/../../b", "a//b", "a/", "a/C:/b",
    "a/nul", "..\\evil", "C:\\evil", "\\\\server\\evil", "evil:stream",
    "nul", "", ".", "evil\0", "~/evil/..",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_output_name_that_leads_elsewhere_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, caplog, name: str
):
    before = set(tmp_path.rglob("*"))
    command = [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos), "--device", "cpu",
        "--dataset.prompt", "a dog", "--output.folder", str(tmp_path / "out"), "--steps", "1",
        f"--output.name={name}",
    ]  # fmt: skip
    assert main(command) == 1
    (message,) = caplog.messages
    assert message.startswith("output.name must be a plain file name")
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.posix
@pytest.mark.parametrize("is_absolute", [True, False])
def test_a_subfolder_of_a_name_that_is_a_link_elsewhere_is_refused(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, caplog, is_absolute: bool
):
    elsewhere, out = tmp_path / "elsewhere", tmp_path / "out"
    elsewhere.mkdir()
    out.mkdir()
    (out / "link").symlink_to(elsewhere if is_absolute else "../elsewhere")
    command = [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos), "--device", "cpu",
        "--dataset.prompt", "a dog", "--output.folder", str(out), "--steps", "1",
        "--output.dtype", "fp32", "--optimizer.learning-rate", "1e-3", "--output.name",
    ]  # fmt: skip
    assert main([*command, "link/dogs/my-dog"]) == 1
    assert caplog.messages[-1] == (
        f"output.name is 'link/dogs/my-dog', but '{out / 'link' / 'dogs'}' is a link that leads "
        f"out of '{out}'. Remove the link, or choose another name."
    )
    assert list(elsewhere.iterdir()) == []
    (out / "link").unlink()
    assert main([*command, "link/dogs/my-dog"]) == 0
    assert (out / "link" / "dogs" / "my-dog.safetensors").is_file()
