"""What the routes of a real ComfyUI answer to requests that its page does not send."""

from __future__ import annotations

import http.client
import itertools
import json
from typing import Any

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

JSON = {"Content-Type": "application/json"}
STEERING = ("finish", "finish/", "preview", "save")
ROUTES = (
    *STEERING,
    *(f"photos/{act}" for act in ("add", "changed", "caption", "remove", "restore")),
)
NO_OBJECTS = [
    b"", b"[]", b"null", b'"a"', b"{", b"[" * 200_000, b'{"a":' * 100_000, b'{"node": "\xff"}',
    b'{"node": ' + b"9" * 5000 + b"}", '{"node": "3"}'.encode("utf-16-le")[:-1],
]  # fmt: skip
VALUES = [
    None,
    1,
    1.5,
    True,
    [],
    {},
    "",
    ["a"],
    {"a": 1},
    float("nan"),
    "\ud800",
    "\0",
    "a" * 10**6,
]
FIELDS = ("folder", "name", "names", "text", "replace", "node")
USUAL = {"folder": "input/none", "name": "a.png", "names": [], "text": "a", "node": "none"}


def answer(
    comfyui, route: str, content: bytes, headers: dict[str, str], method: str = "POST"
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(comfyui.address, timeout=60)
    try:
        connection.request(method, f"/dreambooth/{route}", content, headers)
        answered = connection.getresponse()
        body = answered.read()
    finally:
        connection.close()
    return answered.status, body


@pytest.mark.parametrize("route", ROUTES)
def test_what_is_no_object_is_refused_in_words(comfyui, route):
    for content in NO_OBJECTS:
        status, body = answer(comfyui, route, content, JSON)
        assert (status, "error" in json.loads(body)) == (404 if route in STEERING else 400, True)
    for charset in ("utf-99", "base64", "utf-16"):
        headers = {"Content-Type": f"application/json; charset={charset}"}
        status, body = answer(comfyui, route, json.dumps(USUAL).encode(), headers)
        assert (status < 500, b"Internal" in body) == (True, False)


@pytest.mark.parametrize("route", ROUTES)
def test_every_kind_of_value_in_every_field_is_answered(comfyui, route):
    for field, value in itertools.product(FIELDS, VALUES):
        content = json.dumps({**USUAL, field: value}).encode()
        status, _ = answer(comfyui, route, content, JSON)
        assert status in (200, 400, 404), (field, str(value)[:20])


@pytest.mark.parametrize("route", STEERING)
def test_a_page_of_another_site_cannot_steer_training(comfyui, toy_graph, new_seed, route):
    """It can send texts and forms to an address in the network, where ComfyUI does not compare the
    site with its own."""
    answers = []

    def send(outcome):
        if not outcome.steps or answers:
            return
        content = json.dumps({"node": "3"}).encode()
        for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
            headers = {"Host": "192.168.1.5:8188", "Origin": "http://evil.example"}
            headers |= {"Content-Type": kind} if kind else {}
            answers.append(answer(comfyui, route, content, headers)[0])
        answers.append(answer(comfyui, route, content, JSON)[0])
        comfyui.interrupt()

    graph = toy_graph(seed=new_seed, name="steered", **{"preset.steps": 3000})
    outcome = comfyui.run(graph, on_message=send)
    assert (outcome.end, answers) == ("execution_interrupted", [404, 404, 404, 200])


@pytest.mark.parametrize("route", ROUTES)
def test_comfyui_refuses_other_sites_at_its_own_address(comfyui, route):
    content = json.dumps(USUAL).encode()
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        assert answer(comfyui, route, content, {**JSON, **headers})[0] == 403
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        assert answer(comfyui, route, content, JSON, method)[0] in (404, 405)


def test_folders_that_are_too_deep_are_refused_or_left_out(comfyui):
    deep = "/".join(["deep"] * 20)
    status, body = answer(
        comfyui,
        "photos/add",
        json.dumps({**USUAL, "folder": f"{deep}/a", "names": ["a.png"]}).encode(),
        JSON,
    )
    assert (status, json.loads(body)["error"]) == (
        400, "A folder can be inside at most 19 others. Choose another name.",
    )  # fmt: skip
    bottom = comfyui.base / "input" / "deep"
    bottom.mkdir()
    top = bottom
    for _ in range(30):
        bottom = bottom / "deep"
        bottom.mkdir()
    node = comfyui.get("/object_info/DreamBoothLoadInstanceImages")["DreamBoothLoadInstanceImages"]
    menu = str(node["input"]["required"]["folder"])
    assert f"'input/{deep}'" in menu
    assert f"'input/{deep}/deep'" not in menu
    for folder in (bottom, *bottom.parents):
        folder.rmdir()
        if folder == top:
            break
