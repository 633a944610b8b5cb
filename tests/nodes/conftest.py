"""A real ComfyUI, in a process and base folder of its own, driven over HTTP and websocket with the
standard library. Without COMFYUI_PATH, what needs it is skipped and says so."""

from __future__ import annotations

import base64
import itertools
import json
import os
import secrets
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from trainer.families.sd1 import checkpoint_tensors

ROOT = Path(__file__).parents[2]
PATIENCE = 300
"""Seconds until a server that does not answer, or a workflow that does not end, is a failure."""
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PROGRESS_TEXT = 3
"""ComfyUI's number for the binary message that carries a node's text."""

Event = tuple[str, Any]
Prompt = dict[str, dict[str, Any]]


class Websocket:
    """The client's side of RFC 6455, as far as ComfyUI's messages need it."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        self._file = self._socket.makefile("rb")
        status = self._file.readline()
        assert b" 101 " in status, status
        while self._file.readline() not in (b"\r\n", b""):
            pass

    def receive(self) -> str | bytes:
        """The next message."""
        kind, content = 0, b""
        while True:
            first, second = self._file.read(2)
            size = second & 127
            if size > 125:
                size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            part = self._file.read(size)
            opcode = first & 15
            if opcode == PING:
                self._send(PONG, part)
            elif opcode == CLOSE:
                raise ConnectionError("ComfyUI closed the websocket.")
            elif opcode != PONG:
                kind, content = opcode or kind, content + part
                if first & 128:
                    return content.decode() if kind == TEXT else content

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def _send(self, opcode: int, content: bytes) -> None:
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[index % 4] for index, byte in enumerate(content))
        self._socket.sendall(bytes([128 | opcode, 128 | len(content)]) + mask + masked)


@dataclass
class Outcome:
    """What was heard of one queued workflow until it ended."""

    events: list[Event] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """What nodes showed of their progress."""
    num_previews: int = 0

    @property
    def end(self) -> str:
        """Such as "execution_success"."""
        return self.events[-1][0]

    @property
    def error(self) -> tuple[str, str]:
        """The node's id and what it said."""
        data = self.events[-1][1]
        return data["node_id"], data["exception_message"].strip()

    @property
    def steps(self) -> list[int]:
        """The training steps it heard of."""
        steps = [text for text in self.texts if text.startswith("step ")]
        return [int(text.split()[1].split("/")[0]) for text in steps]

    def outputs(self, node: str) -> dict[str, Any]:
        found = [data["output"] for kind, data in self.events if kind == "executed"
                 and data["node"] == node]  # fmt: skip
        return found[-1]


class ComfyUI:
    """A server, and a page that is open in a browser."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.log = base / "log.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._events: Websocket | None = None
        self._client = secrets.token_hex(8)

    def start(self, *, max_file_size: int | None = None) -> None:
        """Ready when it returns. Nothing is written into ComfyUI's checkout. With a size in bytes,
        larger files fail to be written, as on a full disk."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [
            python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", f"sqlite:///{self.base / 'comfyui.db'}",
        ]  # fmt: skip
        if max_file_size:
            command = ["prlimit", f"--fsize={max_file_size}", *command]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_PATH"], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"ComfyUI did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.2)
        self._events = Websocket(port, f"/ws?clientId={self._client}")

    def stop(self) -> None:
        if self._events:
            self._events.close()
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._process = self._events = None

    def kill(self) -> None:
        """As if the machine had been switched off."""
        assert self._process
        assert self._events
        self._process.kill()
        self._process.wait()
        self._events.close()

    def get(self, path: str) -> Any:
        url = f"http://{self.address}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        """The status and the answer."""
        url = f"http://{self.address}{path}"
        request = urllib.request.Request(url, json.dumps(content).encode(), method="POST")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                body = answer.read()
                return answer.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def run(self, prompt: Prompt, *, hear: Callable[[Outcome], None] | None = None) -> Outcome:
        """Queue a workflow and listen until it ends; `hear` is called at each message."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self._client})
        assert status == 200, answer
        outcome, deadline = Outcome(), time.monotonic() + PATIENCE
        assert self._events
        while time.monotonic() < deadline:
            message = self._events.receive()
            if isinstance(message, bytes):
                _hear_binary(message, outcome)
            else:
                event = json.loads(message)
                # "executing" with no node is a last message, sent after the end.
                if event["data"].get("prompt_id", answer["prompt_id"]) == answer["prompt_id"]:
                    if event["type"] == "execution_start":
                        outcome.events.clear()  # Another client's workflow, told to everybody.
                    outcome.events.append((event["type"], event["data"]))
            if outcome.events and outcome.end in ENDS:
                return outcome
            if hear:
                hear(outcome)
        raise TimeoutError(f"The workflow did not end: {outcome.events[-3:]}")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def trained(self) -> list[str]:
        """Names of the files in checkpoints/dreambooth."""
        folder = self.base / "models" / "checkpoints" / "dreambooth"
        return sorted(path.name for path in folder.glob("*"))

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


ENDS = ("execution_success", "execution_error", "execution_interrupted")


def _hear_binary(message: bytes, outcome: Outcome) -> None:
    (kind,) = struct.unpack(">I", message[:4])
    if kind == PROGRESS_TEXT:
        (size,) = struct.unpack(">I", message[4:8])
        outcome.texts.append(message[8 + size :].decode())
    else:
        outcome.num_previews += 1


@pytest.fixture(scope="session")
def needs_comfyui() -> None:
    path = os.environ.get("COMFYUI_PATH")
    if not path:
        pytest.skip("COMFYUI_PATH, a checkout of ComfyUI to test the nodes in, is not set")
    if not (Path(path) / "main.py").is_file():
        pytest.fail(f"COMFYUI_PATH is {path}, where there is no main.py.")


ANY_TEXT = """
class AnyText:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "give", "tests"

    def give(self, text):
        return (text,)

NODE_CLASS_MAPPINGS = {"AnyText": AnyText}
"""
"""Another pack's node whose output fits every input, which ComfyUI does not look up in menus then.
"""


def make_base(folder: Path) -> Path:
    """A base folder with this pack and `ANY_TEXT` among its custom nodes and nothing else."""
    for name in ("custom_nodes", "input", "models/checkpoints", "output", "user"):
        (folder / name).mkdir(parents=True)
    try:
        os.symlink(ROOT, folder / "custom_nodes" / "ComfyUI-DreamBooth")
    except OSError:  # to few users of Windows
        pytest.skip("this user may not make links")
    (folder / "custom_nodes" / "any_text.py").write_text(ANY_TEXT)
    return folder


@pytest.fixture(scope="session")
def comfyui(needs_comfyui: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with this pack and nothing in its folders."""
    server = ComfyUI(make_base(tmp_path_factory.mktemp("comfyui")))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def sd15_checkpoint(
    needs_comfyui: None,
    build_networks: Callable[..., Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Of Stable Diffusion 1.5's own widths in fp16, with random weights and a U-Net of one level,
    which ComfyUI's own loader takes. Not to be changed."""
    networks = build_networks(
        unet={
            "block_out_channels": (320,),
            "down_block_types": ("CrossAttnDownBlock2D",),
            "up_block_types": ("CrossAttnUpBlock2D",),
            "layers_per_block": 1,
            "cross_attention_dim": 768,
        },
        vae={
            "block_out_channels": (128, 256, 512, 512),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 2,
        },
        text_encoder={"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
    )
    path = tmp_path_factory.mktemp("sd15") / "random.safetensors"
    tensors = checkpoint_tensors(*networks)
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture
def own_comfyui(needs_comfyui: None, tmp_path: Path) -> Iterator[ComfyUI]:
    """One that no other test uses."""
    server = ComfyUI(make_base(tmp_path / "base"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def full_comfyui(needs_comfyui: None, tmp_path: Path) -> Iterator[ComfyUI]:
    """One that cannot write files as large as a checkpoint."""
    if shutil.which("prlimit") is None:
        pytest.skip("prlimit, which makes a disk seem full, is not on this system")
    server = ComfyUI(make_base(tmp_path / "base"))
    try:
        server.start(max_file_size=8 << 20)
        yield server
    finally:
        server.stop()


@pytest.fixture
def toy_graph() -> Callable[..., Prompt]:
    """Builds the first workflow in API form; the settings are DreamBooth Train's."""
    return _toy_graph


_seeds = itertools.count(1000)


@pytest.fixture
def new_seed() -> int:
    """One that no other test trains with."""
    return next(_seeds)


def _toy_graph(folder: str = "toy cup photos (embedded)", **settings: Any) -> Prompt:
    train = {
        "model_source": ["1", 0],
        "dataset": ["2", 0],
        "preset": "toy",
        "preset.learning_rate": 2e-4,
        "preset.steps": 3,
        "preset.batch_size": 1,
        "preset.train_text_encoder": False,
        "preset.prior_weight": 0.0,
        "seed": 0,
        "save_every": 0,
        "name": "cup",
        "on_existing": "reuse",
        **settings,
    }
    photos = {
        "folder": folder,
        "instance_prompt": "a photo of sks cup",
        "resolution": 0,
        "crop": "center",
        "buckets": False,
        "mirror": False,
        "allow_upscaling": False,
        "background": "white",
    }
    sampling = {
        "model_source": ["3", 0],
        "prompts": "a photo of sks cup\na photo of a cup",
        "scheduler": "DDIM",
        "second_scheduler": "Euler",
        "third_scheduler": "none",
        "steps": 2,
        "guidance_scale": 4.0,
        "seed": 1,
        "negative_prompt": "",
        "width": 0,
        "height": 0,
        "batch_size": 4,
        "precision": "fp32",
    }
    return {
        "1": _node("LoadBaseModel", {"checkpoint": "toy (embedded)"}),
        "2": _node("LoadInstanceImages", photos),
        "3": _node("Train", train),
        "4": _node("SampleWithScheduler", sampling),
        "5": {
            "class_type": "SaveImage",
            "inputs": {"images": ["4", 1], "filename_prefix": "toy"},
        },
    }


def _node(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"class_type": f"DreamBooth{name}", "inputs": inputs}
