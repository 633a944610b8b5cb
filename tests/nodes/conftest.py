"""A real ComfyUI in a separate process with its own base folder, driven over HTTP and websocket by
the standard library. Tests that need it are skipped if COMFYUI_PATH is not set."""

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

from benchmarks.random_networks import SD15_ONE_LEVEL, Shape

ROOT = Path(__file__).parents[2]
TIMEOUT = 300
"""Seconds to wait for a server to answer or a workflow to end, before the test fails."""
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
PROGRESS_TEXT = 3
"""ComfyUI's number for binary messages that carry a node's text."""

Event = tuple[str, Any]
Prompt = dict[str, dict[str, Any]]


class Websocket:
    """The client side of RFC 6455, as far as ComfyUI's messages need it."""

    def __init__(self, port: int, path: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
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
        """Return the next message."""
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
    """The messages about one queued workflow."""

    events: list[Event] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    """The progress texts of its nodes."""
    last_texts: dict[str, str] = field(default_factory=dict)
    """The last of them by the node's id."""
    num_previews: int = 0

    @property
    def end(self) -> str:
        """The last event, such as "execution_success"."""
        return self.events[-1][0]

    @property
    def error(self) -> tuple[str, str]:
        """The id of the node that failed, and its message."""
        data = self.events[-1][1]
        return data["node_id"], data["exception_message"].strip()

    @property
    def steps(self) -> list[int]:
        """The training steps in the progress texts."""
        steps = [text for text in self.texts if text.startswith("step ")]
        return [int(text.split()[1].split("/")[0]) for text in steps]

    @property
    def warnings(self) -> list[str]:
        """The different warnings in the progress texts."""
        lines = [line for text in self.texts for line in text.splitlines()]
        warnings = [line for line in lines if line.startswith("Warning: ")]
        return [line.removeprefix("Warning: ") for line in dict.fromkeys(warnings)]

    def outputs(self, node: str) -> dict[str, Any]:
        found = [data["output"] for kind, data in self.events if kind == "executed"
                 and data["node"] == node]  # fmt: skip
        return found[-1]


class ComfyUI:
    """A ComfyUI server, and a client that listens as an open browser page would."""

    def __init__(self, base: Path, name: str = "") -> None:
        """`name`: another one for each server on the same base folder."""
        self.base = base
        self.log = base / f"log{name}.txt"
        self._database = base / f"comfyui{name}.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._events: Websocket | None = None
        self._client = secrets.token_hex(8)

    def restart(self) -> None:
        """Stop the server and start it at the same address."""
        self.stop()
        self.start(port=int(self.address.rpartition(":")[2]))

    def start(self, *, port: int = 0, max_file_size: int | None = None, **variables: str) -> None:
        """Start the server and wait until it answers. Nothing is written into ComfyUI's checkout.
        COMFYUI_FRONTEND names the folder of another frontend than its own.
        No file can grow beyond `max_file_size` bytes, as on a full disk. `variables` are added to
        its environment."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            port = probe.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [
            python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(port),
            "--base-directory", str(self.base), "--disable-auto-launch", "--disable-api-nodes",
            "--database-url", f"sqlite:///{self._database}",
        ]  # fmt: skip
        if frontend := os.environ.get("COMFYUI_FRONTEND"):
            command += ["--front-end-root", frontend]
        if max_file_size:
            command = ["prlimit", f"--fsize={max_file_size}", *command]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=os.environ["COMFYUI_PATH"], env=environment, stdout=log, stderr=log
            )
        deadline = time.monotonic() + TIMEOUT
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
        """Kill the server, as if the machine had been switched off."""
        assert self._process
        assert self._events
        self._process.kill()
        self._process.wait()
        self._events.close()

    def get(self, path: str) -> Any:
        url = f"http://{self.address}{path}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            return json.load(answer)

    def post(self, path: str, content: Any) -> tuple[int, Any]:
        """Return the status and the answer."""
        url = f"http://{self.address}{path}"
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(content).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                body = answer.read()
                return answer.status, json.loads(body) if body else None
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def run(
        self, prompt: Prompt, *, on_message: Callable[[Outcome], None] | None = None
    ) -> Outcome:
        """Queue a workflow and wait until it ends. `on_message` is called after each message."""
        status, answer = self.post("/prompt", {"prompt": prompt, "client_id": self._client})
        assert status == 200, answer
        outcome, deadline = Outcome(), time.monotonic() + TIMEOUT
        assert self._events
        while time.monotonic() < deadline:
            message = self._events.receive()
            if isinstance(message, bytes):
                _read_binary(message, outcome)
            else:
                event = json.loads(message)
                # After the end comes one more message, "executing" without a node.
                if event["data"].get("prompt_id", answer["prompt_id"]) == answer["prompt_id"]:
                    if event["type"] == "execution_start":
                        outcome.events.clear()  # of another client's workflow
                    outcome.events.append((event["type"], event["data"]))
            if outcome.events and outcome.end in ENDS:
                return outcome
            if on_message:
                on_message(outcome)
        raise TimeoutError(f"The workflow did not end: {outcome.events[-3:]}")

    def interrupt(self) -> None:
        self.post("/interrupt", {})

    def trained(self) -> list[str]:
        """Return the names of the files in checkpoints/dreambooth."""
        folder = self.base / "models" / "checkpoints" / "dreambooth"
        return sorted(path.name for path in folder.glob("*"))

    def _answers(self) -> bool:
        try:
            return bool(self.get("/system_stats"))
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


ENDS = ("execution_success", "execution_error", "execution_interrupted")


def _read_binary(message: bytes, outcome: Outcome) -> None:
    (kind,) = struct.unpack(">I", message[:4])
    if kind == PROGRESS_TEXT:
        (size,) = struct.unpack(">I", message[4:8])
        node, text = message[8 : 8 + size].decode(), message[8 + size :].decode()
        outcome.texts.append(text)
        outcome.last_texts[node] = text
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
import logging

class AnyText:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("STRING", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "give", "tests"

    def give(self, text):
        return (text,)

class AnyList:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}, "optional": {
        f"item{i}": ("*", {}) for i in range(9)}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_IS_LIST = ("*",), "give", "tests", (True,)

    def give(self, **items):
        return (list(items.values()),)

class Nothing:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "give", "tests"

    def give(self):
        return (None,)

class Log:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"text": ("*", {})}})
    RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "give", "tests", True

    def give(self, text):
        logging.info("Log: %s", text)
        return {}

NODE_CLASS_MAPPINGS = {"AnyText": AnyText, "AnyList": AnyList, "Nothing": Nothing, "Log": Log}
"""
"""Nodes of another pack whose outputs fit every input: a text, a list of the given items, and None.
ComfyUI does not compare such values with the input's menu. Log writes a text into the log."""


def make_base(folder: Path) -> Path:
    """Create a base folder whose only custom nodes are this pack and `ANY_TEXT`."""
    for name in ("custom_nodes", "input", "models/checkpoints", "output", "user"):
        (folder / name).mkdir(parents=True)
    try:
        os.symlink(ROOT, folder / "custom_nodes" / "ComfyUI-DreamBooth")
    except OSError:  # On Windows, few users may.
        pytest.skip("this user may not make links")
    (folder / "custom_nodes" / "any_text.py").write_text(ANY_TEXT)
    return folder


@pytest.fixture(scope="session")
def comfyui(needs_comfyui: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    """A running ComfyUI with this pack and empty folders."""
    server = ComfyUI(make_base(tmp_path_factory.mktemp("comfyui")))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def sd15_checkpoint(
    needs_comfyui: None,
    save_fp16_checkpoint: Callable[[Shape, Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint of `SD15_ONE_LEVEL` in fp16. Tests must not change it."""
    path = tmp_path_factory.mktemp("sd15") / "random.safetensors"
    return save_fp16_checkpoint(SD15_ONE_LEVEL, path)


@pytest.fixture
def own_comfyui(needs_comfyui: None, tmp_path: Path) -> Iterator[ComfyUI]:
    """A running ComfyUI that no other test uses."""
    server = ComfyUI(make_base(tmp_path / "base"))
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def full_comfyui(needs_comfyui: None, tmp_path: Path) -> Iterator[ComfyUI]:
    """A running ComfyUI that cannot write files as large as a checkpoint."""
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
    """Builds a workflow in API form that trains the toy model and samples from it. Keyword
    arguments are inputs of DreamBooth Train."""
    return toy_workflow


_seeds = itertools.count(1000)


@pytest.fixture
def new_seed() -> int:
    """A seed that no other test trains with."""
    return next(_seeds)


@pytest.fixture
def lora_graph(toy_graph: Callable[..., Prompt], new_seed: int) -> Callable[..., Prompt]:
    """Builds a workflow whose node 3 trains a LoRA of the toy model. Keyword arguments are its
    inputs; `lora` has those below `trains`."""

    def build(lora: dict[str, Any] | None = None, **settings: Any) -> Prompt:
        train = {
            "seed": new_seed, "name": f"lora-{new_seed}", "preset": "LoRA toy",
            "preset.learning_rate": 1e-2, "trains": "LoRA", "trains.rank": 3,
            **{f"trains.{name}": value for name, value in (lora or {}).items()}, **settings,
        }  # fmt: skip
        built = toy_graph(**train)
        return {number: built[number] for number in ("1", "2", "3")}

    return build


@pytest.fixture
def lora_files(comfyui: ComfyUI, new_seed: int) -> Callable[[], dict[str, Path]]:
    """Returns the LoRA files with the seed in their names, by their names."""

    def find() -> dict[str, Path]:
        folder = comfyui.base / "models" / "loras" / "dreambooth"
        return {path.name: path for path in sorted(folder.glob(f"*{new_seed}*"))}

    return find


@pytest.fixture
def priors_node() -> Callable[..., dict[str, Any]]:
    """Builds a Generate Class Priors node that draws with the model of node 1."""

    def build(
        num_images: int, *, seed: int = 0, steps: int = 2, batch_size: int = 2
    ) -> dict[str, Any]:
        sampling = {
            "num_images": num_images, "scheduler": "DDIM", "steps": steps, "guidance_scale": 4.0,
            "seed": seed, "negative_prompt": "", "resolution": 0, "batch_size": batch_size,
            "precision": "fp32",
        }  # fmt: skip
        inputs = {
            "model_source": ["1", 0],
            "class_prompt": "a photo of a cup",
            "images": "made by the model",
            **{f"images.{name}": value for name, value in sampling.items()},
        }
        return node("GenerateClassPriors", inputs)

    return build


def toy_workflow(folder: str = "toy cup photos (embedded)", **settings: Any) -> Prompt:
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
        "1": node("LoadBaseModel", {"checkpoint": "toy (embedded)"}),
        "2": node("LoadInstanceImages", photos),
        "3": node("Train", train),
        "4": node("SampleWithScheduler", sampling),
        "5": {
            "class_type": "SaveImage",
            "inputs": {"images": ["4", 1], "filename_prefix": "toy"},
        },
    }


def node(name: str, inputs: dict[str, Any]) -> dict[str, Any]:
    return {"class_type": f"DreamBooth{name}", "inputs": inputs}
