"""That the trainer starts nothing, reaches nobody and writes only where it was told to: heard from
Python itself, which announces each such act to an audit hook, and tried with names that lead
elsewhere."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer.__main__ import main

ROOT = Path(__file__).parents[2]
LISTEN = """
import json, os, sys

heard = []
FORBIDDEN = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
    "os.startfile", "pty.", "socket.connect", "socket.getaddrinfo", "socket.gethostby",
    "socket.sendto", "urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.")
CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.chmod",
    "os.chown", "os.truncate", "os.utime", "shutil.")
TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def whole(place, folder=-1):
    # A name may be one within an open folder, of which only the number is told.
    inside = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
    return os.path.join(inside, os.fsdecode(place))

def hear(event, arguments):
    if event.startswith(FORBIDDEN):
        heard.append(["forbidden", event, repr(arguments)])
    elif event.startswith(CHANGES):
        # A rename and a link have two paths, of which either counts.
        places = [place for place in arguments[:2] if isinstance(place, (str, bytes))]
        folder = arguments[-1] if isinstance(arguments[-1], int) and event != "os.truncate" else -1
        heard.extend(["written", event, whole(place, folder)] for place in places)
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & TO_WRITE:
        if isinstance(arguments[0], (str, bytes)):
            heard.append(["written", event, whole(arguments[0])])

sys.addaudithook(hear)
"""
RUN = """
from trainer.__main__ import main
codes = [main(command) for command in json.loads(sys.argv[1])]
sys.stdout.write("\\n" + json.dumps([codes, heard]))
"""
DRAW = """
from trainer.observer import StepReport
from trainer.evaluation.plots import loss_curve
report = StepReport(
    step=1, total_steps=1, loss=1.0, instance_loss=1.0, prior_loss=None, learning_rates={},
    grad_norm=1.0, steps_per_second=1.0, seconds_left=0.0, peak_megabytes=1.0,
)
loss_curve([report])
sys.stdout.write("\\n" + json.dumps([[], heard]))
"""

JUDGE = """
import numpy, torch
from pathlib import Path
from trainer.evaluation import encoders
for folder in sys.argv[1:]:
    judge = encoders.load(Path(folder), torch.device("cpu"))
    judge.embed_images([numpy.zeros((9, 9, 3), numpy.uint8)])
    judge.embed_prompts(["a dog"])
sys.stdout.write("\\n" + json.dumps([[], heard]))
"""


@pytest.fixture
def listen(tmp_path: Path):
    """Runs code in a process of its own, whose home and place for passing files are `tmp_path`'s;
    gives what it returned, what it did that is forbidden, and which paths it changed."""
    for name in ("home", "passing"):
        (tmp_path / name).mkdir()

    def run(code: str, *arguments: str) -> tuple[list[int], list[str], set[Path]]:
        environment = {
            **os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "passing"),
            "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        }  # fmt: skip
        for name in [name for name in environment if name.startswith(("XDG_", "MPL", "TORCH"))]:
            del environment[name]
        command = [sys.executable, "-c", LISTEN + code, *arguments]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        codes, heard = json.loads(done.stdout.splitlines()[-1])
        forbidden = [f"{event} {what}" for kind, event, what in heard if kind == "forbidden"]
        return codes, forbidden, {Path(what) for kind, _, what in heard if kind == "written"}

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    return tmp_path / "photos"


@pytest.mark.posix
def test_the_ear_hears(listen, tmp_path: Path):
    _, forbidden, written = listen(
        "import subprocess, socket\n"
        "subprocess.run(['true'])\n"
        "os.system('true')\n"
        "try: socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
        "except OSError: pass\n"
        "open('out', 'w').close()\n"
        "os.replace('out', 'moved')\n"
        "sys.stdout.write(json.dumps([[], heard]))"
    )
    acts = {"subprocess.Popen", "os.system", "socket.getaddrinfo", "socket.connect"}
    assert {line.split()[0] for line in forbidden} - {"os.posix_spawn"} == acts
    assert written == {tmp_path / "out", tmp_path / "moved"}


@pytest.mark.posix
def test_runs_start_nothing_reach_nobody_and_write_where_they_were_told(
    listen, tiny_checkpoint: Path, photos: Path, tmp_path: Path
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
    codes, forbidden, written = listen(RUN, json.dumps([train + shared, sample + shared]))
    assert codes == [0, 0]
    assert forbidden == []
    allowed = (out, tmp_path / "passing")
    assert [path for path in written if not any(path.is_relative_to(a) for a in allowed)] == []
    assert out / "dreambooth.safetensors" in written
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.posix
def test_a_chart_does_no_more_than_matplotlib_s_search_for_fonts(listen, tmp_path: Path):
    """Which it does once for each user, and keeps."""
    _, forbidden, written = listen(DRAW)
    assert {line.split()[0] for line in forbidden} <= {"subprocess.Popen", "os.posix_spawn"}
    assert all("fc-list" in line or "system_profiler" in line for line in forbidden)
    allowed = ("matplotlib", ".config", ".cache")
    outside = [path for path in written if not path.is_relative_to(tmp_path / "passing")]
    assert all(any(name in path.parts for name in allowed) for path in outside), outside


@pytest.mark.posix
def test_judges_come_from_their_folders_and_reach_nobody(listen, tmp_path: Path):
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    small = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
    clip = CLIPModel(CLIPConfig(vision_config=small, text_config=small))
    clip.save_pretrained(tmp_path / "clip")
    ViTModel(ViTConfig(**small)).save_pretrained(tmp_path / "dino")
    _, forbidden, written = listen(JUDGE, str(tmp_path / "clip"), str(tmp_path / "dino"))
    assert forbidden == []
    assert [path for path in written if not path.is_relative_to(tmp_path / "passing")] == []
    assert list((tmp_path / "home").iterdir()) == []


NAMES = [
    "../evil", "..", "/tmp/evil", "a/b", "..\\evil", "C:\\evil", "\\\\server\\evil", "evil:stream",
    "nul", "", ".", "evil\0", "~/evil/..",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_output_name_that_leads_elsewhere_is_refused_before_anything_is_done(
    tiny_checkpoint: Path, photos: Path, tmp_path: Path, capsys, name: str
):
    before = set(tmp_path.rglob("*"))
    command = [
        "train", "--base", str(tiny_checkpoint), "--dataset.photos", str(photos), "--device", "cpu",
        "--dataset.prompt", "a dog", "--output.folder", str(tmp_path / "out"), "--steps", "1",
        f"--output.name={name}",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "output.name must be a plain file name" in said, said
    assert set(tmp_path.rglob("*")) == before
