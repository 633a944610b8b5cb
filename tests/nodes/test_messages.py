"""Messages about names that consoles and pages would obey or cannot show, in a real ComfyUI."""

from __future__ import annotations

import shutil

import pytest

from trainer.toy import PHOTOS

from .conftest import ComfyUI, make_base

pytestmark = [pytest.mark.xdist_group("comfyui"), pytest.mark.posix]

EVIL = "[[a|b]]<img src=x onerror=alert(1)>\x1b[2J\u202e"


def background(toy_graph, value):
    graph = {"2": toy_graph()["2"]}
    graph["2"]["inputs"]["background"] = value
    graph["3"] = {"class_type": "Log", "inputs": {"text": ["2", 0]}}
    return graph


@pytest.fixture
def narrow_comfyui(needs_comfyui, tmp_path):
    """A ComfyUI whose console has only the letters of Western Europe, as where Windows writes the
    console of ComfyUI into a file."""
    server = ComfyUI(make_base(tmp_path / "base"))
    try:
        server.start(PYTHONIOENCODING="cp1252")
        yield server
    finally:
        server.stop()


def test_letters_that_the_console_lacks_do_not_stop_comfyui(narrow_comfyui, toy_graph):
    for value in ("\ud800", "강아지"):
        outcome = narrow_comfyui.run(background(toy_graph, value))
        assert outcome.end == "execution_error"
        assert outcome.error[1].endswith(f"got '{value}'.")
    assert narrow_comfyui.run(background(toy_graph, "white")).end == "execution_success"
    assert b"\\uac15\\uc544\\uc9c0" in narrow_comfyui.log.read_bytes()


def test_names_reach_the_page_as_text_and_the_console_without_codes(comfyui, toy_graph):
    folder = comfyui.base / "input" / "evil"
    shutil.copytree(PHOTOS, folder)
    (folder / f"{EVIL}.txt").write_text("a caption of no photo")
    log = comfyui.log.stat().st_size
    outcome = comfyui.run(toy_graph("input/evil"))
    shown = "[&#91;a|b]]&lt;img src=x onerror=alert(1)&gt;\\x1b[2J\\u202e.txt"
    assert any(shown in text for text in outcome.texts)
    assert not any("<img" in text for text in outcome.texts)
    told = comfyui.log.read_bytes()[log:].decode()
    assert "[[a|b]]<img src=x onerror=alert(1)>\\x1b[2J\\u202e.txt" in told
    assert "\x1b[2J" not in told
