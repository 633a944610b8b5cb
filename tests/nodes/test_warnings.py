"""The text on a node: which warnings reach it, how many, and in which words."""

import json

import pytest

from benchmarks.startup import STARTUP, last_line

pytestmark = pytest.mark.xdist_group("comfyui")

SCRIPT = (
    STARTUP
    + """
import contextvars, json, logging, threading
from types import SimpleNamespace
from comfy_execution.utils import CurrentNodeContext
host = sys.modules["/pack.nodes.host"]
ours = logging.getLogger("/pack.trainer.data.folders")
texts = []
send = lambda text, node, client: texts.append([node, text])
host.PromptServer.instance = SimpleNamespace(client_id=None, send_progress_text=send)

def last(act):
    "The last text on the node of what a function does, and the number of texts."
    texts.clear()
    with CurrentNodeContext("prompt", "7"), host.warnings_on_node():
        act()
    ours.warning("After the node.")
    return [*(texts[-1] if texts else [None, None]), len(texts)]

def in_thread(run):
    thread = threading.Thread(target=contextvars.copy_context().run, args=[run])
    thread.start()
    thread.join()

def other_thread():
    ours.warning("mine")
    in_thread(lambda: ours.warning("theirs"))

def many():
    for number in range(7):
        ours.warning("warning %d", number)
    for number in (3, 6):
        ours.warning("warning %d", number)

def several_kinds():
    ours.info("an information")
    logging.getLogger("diffusers").warning("another library")
    ours.warning("Lower optimizer.learning_rate,\\n  or set output.dtype to %s.", "fp32")

def broken():
    ours.warning("%d", "no number")
    ours.warning("next")

logging.raiseExceptions = False
acts = [other_thread, many, several_kinds, broken]
print(json.dumps({act.__name__: last(act) for act in acts}))
"""
)


@pytest.fixture(scope="module")
def shown(needs_comfyui, tmp_path_factory):
    """For each function of `SCRIPT`, the node, its text and how often it was sent."""
    return json.loads(last_line(SCRIPT, tmp_path_factory.mktemp("base")))


def test_warnings_of_other_threads_are_not_shown(shown):
    """They belong to another node, or to another prompt."""
    assert shown["other_thread"] == ["7", "Warning: mine", 1]


def test_the_latest_five_warnings_are_shown_and_none_twice(shown):
    lines = [f"Warning: warning {number}" for number in range(2, 7)]
    assert shown["many"] == ["7", "\n".join(lines), 7]


def test_warnings_name_widgets_on_one_line_each(shown):
    assert shown["several_kinds"] == [
        "7",
        "Warning: Lower learning_rate, or set file_dtype of Optimizer Settings to fp32.",
        1,
    ]


def test_a_warning_that_cannot_be_formatted_stops_nothing(shown):
    assert shown["broken"] == ["7", "Warning: next", 1]
