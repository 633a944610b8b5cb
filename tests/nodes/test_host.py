"""Runs inside a real ComfyUI: finished, reused, cancelled, resumed and refused."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.startup import STARTUP, last_line
from trainer.toy import PHOTOS

NO_PREVIEWS = (
    "DreamBooth Train drew no previews. Connect Preview Settings, with 'every' no larger than the "
    "number of steps, and set on_existing to retrain, because this run is finished."
)

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
INSIDE_COMFYUI = (
    STARTUP
    + """
import json, torch, weakref
host = sys.modules["/pack.nodes.host"]
heavy = new & {"diffusers", "transformers", "scipy", "matplotlib"}

models = []
def train(device):
    model = torch.nn.Linear(1, 1, device=device)
    model.itself = [model]
    models.append(weakref.ref(model))
    assert model(torch.ones(1, 1)).requires_grad
    raise ValueError("stopped")
try:
    with torch.inference_mode(), host.trainer_device() as device:
        train(device)
except ValueError as error:
    after_error = [sum(model() is not None for model in models), str(error)]

import comfy.model_management as management, comfy.model_patcher
from pathlib import Path
cpu = torch.device("cpu")
theirs = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), cpu, cpu)
management.load_models_gpu([theirs])
with host.trainer_device(unload_now=False):
    num_loaded = [len(management.current_loaded_models)]
    host.ComfyObserver().on_load(Path("ours"))
    num_loaded.append(len(management.current_loaded_models))
found = {"heavy": sorted(heavy), "after error": after_error, "loaded": num_loaded}
print(json.dumps(found))
"""
)
"""Three checks in one process, because loading ComfyUI takes long: libraries that the pack imports,
models that stay in memory after an error, and the number of ComfyUI's models before and after ours
is loaded."""


@pytest.fixture(scope="module")
def found(needs_comfyui, tmp_path_factory):
    """The results of `INSIDE_COMFYUI`."""
    return json.loads(last_line(INSIDE_COMFYUI, tmp_path_factory.mktemp("base")))


@pytest.fixture
def photos(comfyui):
    """Copies the sample photos into a folder below input/. Returns the folder and its name in the
    menu."""
    made = []

    def make(name):
        folder = comfyui.base / "input" / name
        shutil.copytree(PHOTOS, folder)
        made.append(folder)
        return folder, f"input/{name}"

    yield make
    for folder in made:
        shutil.rmtree(folder, ignore_errors=True)


def test_importing_the_pack_loads_no_heavy_library(found):
    """`benchmarks/startup.py` measures how long the import takes."""
    assert found["heavy"] == []


def test_an_error_keeps_no_model_in_memory(found):
    assert found["after error"] == [0, "stopped"]


def test_comfyuis_models_are_unloaded_only_when_ours_is_loaded(found):
    assert found["loaded"] == [1, 0]


def test_the_toy_workflow_runs_to_the_end(comfyui, toy_graph, new_seed):
    outcome = comfyui.run(toy_graph(seed=new_seed, name="first"))
    assert outcome.end == "execution_success", outcome.error
    (saved,) = outcome.outputs("5")["images"]
    with Image.open(comfyui.base / "output" / saved["filename"]) as image:
        assert image.width > 2 * 128
    assert "first.safetensors" in comfyui.trained()
    assert outcome.steps[-1] == 3
    assert outcome.texts[-1].startswith("Sampling ")
    last = [text for text in outcome.texts if text.startswith("step ")][-1]
    assert last.startswith("step 3/3, loss ")
    assert last.endswith(", 0:00:00 left")
    wrote = f"Wrote {os.path.join('dreambooth', 'first.safetensors')}"
    assert outcome.texts.index("Loading toy (embedded)") < outcome.texts.index(last)
    assert outcome.texts.index(last) < outcome.texts.index(wrote)
    progress = [data for kind, data in outcome.events if kind == "progress" and data["node"] == "3"]
    assert progress[-1]["value"] == progress[-1]["max"] == 3
    # The panel on the node gets everything that it shows.
    (view,) = outcome.outputs("3")["dreambooth"]
    assert (view["state"], view["step"], view["total"]) == ("finished", 3, 3)
    assert [step for step, _, _ in view["points"]] == [1, 2, 3]
    assert view["file"] == os.path.join("dreambooth", "first.safetensors")
    saved_events = [data for kind, data in outcome.events if kind == "dreambooth.checkpoint"]
    assert [(data["step"], data["name"]) for data in saved_events] == [
        (3, os.path.join("dreambooth", "first.safetensors"))
    ]
    menu = comfyui.get("/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]
    names = menu["input"]["required"]["ckpt_name"][0]
    assert os.path.join("dreambooth", "first.safetensors") in names


def test_a_finished_run_is_not_trained_again(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="once")
    assert comfyui.run(graph).steps[-1] == 3
    files = comfyui.trained()
    assert comfyui.run(graph).steps == []
    # Another workflow in between empties ComfyUI's cache of results.
    comfyui.run(toy_graph(seed=new_seed + 500, name="between"))
    files_with_other = comfyui.trained()
    assert set(files_with_other) - set(files) == {"between.safetensors"}
    again = comfyui.run(graph)
    assert (again.end, again.steps) == ("execution_success", [])
    comfyui.stop()
    comfyui.start()
    restarted = comfyui.run(graph)
    (view,) = restarted.outputs("3")["dreambooth"]
    assert (view["state"], len(view["points"])) == ("found", 3)
    assert (restarted.end, restarted.steps) == ("execution_success", [])
    assert f"Trained before: {os.path.join('dreambooth', 'once.safetensors')}" in restarted.texts
    assert comfyui.trained() == files_with_other


def test_a_changed_photo_starts_a_new_run(comfyui, toy_graph, photos, new_seed):
    folder, name = photos("changing")
    graph = toy_graph(name, seed=new_seed)
    assert comfyui.run(graph).steps[-1] == 3
    first = sorted(folder.iterdir())[0]
    with Image.open(first) as photo:
        size = photo.size
    Image.new("RGB", size, "red").save(first)
    assert comfyui.run(graph).steps[-1] == 3


def test_retrain_trains_each_time_it_is_queued(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="retrained", on_existing="retrain")
    assert comfyui.run(graph).steps[-1] == 3
    assert comfyui.run(graph).steps[-1] == 3
    assert {"retrained.safetensors", "retrained_00001.safetensors"} <= set(comfyui.trained())


def test_cancelling_stops_within_a_step_and_the_next_queue_resumes(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="stopped", **{"preset.steps": 4000})
    stopped_at = []

    def stop(outcome):
        if outcome.steps and outcome.steps[-1] >= 2 and not stopped_at:
            comfyui.interrupt()
            logs = comfyui.base.rglob("metrics.jsonl")
            newest = max(logs, key=lambda path: path.stat().st_mtime_ns)
            stopped_at.append(len(newest.read_text().splitlines()))

    outcome = comfyui.run(graph, on_message=stop)
    assert outcome.end == "execution_interrupted"
    assert "stopped.safetensors" not in comfyui.trained()
    stopped = int(re.findall(r"Stopped after step (\d+)", comfyui.log.read_text())[-1])
    # The last step that was recorded when the click arrived, or the step after it.
    assert stopped_at[0] <= stopped <= stopped_at[0] + 1
    stopped_at.clear()
    outcome = comfyui.run(graph, on_message=stop)
    assert outcome.end == "execution_interrupted"
    assert f"Resuming after step {stopped}." in comfyui.log.read_text()
    assert outcome.steps[0] > stopped


def test_finishing_early_saves_the_checkpoint_and_continues_the_graph(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="content", **{"preset.steps": 4000})
    answers = []

    def finish(outcome):
        if outcome.steps and not answers:
            answers.append(comfyui.post("/dreambooth/finish", {"node": "3"}))

    outcome = comfyui.run(graph, on_message=finish)
    assert outcome.end == "execution_success", outcome.error
    assert answers == [(200, {"node": "3"})]
    assert len(outcome.outputs("5")["images"]) == 1
    (step,) = re.findall(
        r"Finished early, after step (\d+) of 4000, as requested\.", comfyui.log.read_text()
    )
    (saved,) = [data for kind, data in outcome.events if kind == "dreambooth.checkpoint"]
    assert (saved["step"], saved["name"]) == (
        int(step), os.path.join("dreambooth", "content.safetensors"),
    )  # fmt: skip
    assert comfyui.post("/dreambooth/finish", {"node": "3"})[0] == 404


@pytest.mark.parametrize(
    "content",
    [{"node": "3"}, {"node": None}, {"node": ["3"]}, {"node": "../../3"}, {}, [], "3", None],
)
def test_only_a_node_that_is_training_can_be_finished(comfyui, content):
    assert comfyui.post("/dreambooth/finish", content) == (
        404,
        {
            "error": "No training is running on this node. Send the id of a node that is training: "
            '{"node": "3"}.'
        },
    )


@pytest.mark.parametrize("activity", ["Class images", "Sampling"])
def test_drawing_can_be_cancelled(comfyui, toy_graph, priors_node, new_seed, activity):
    graph = toy_graph(seed=new_seed)
    graph["4"]["inputs"]["steps"] = 1000
    if activity == "Class images":
        graph["6"] = priors_node(1000, seed=new_seed)
        graph["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
    cancelled = []

    def cancel(outcome):
        if not cancelled and any(text.startswith(activity) for text in outcome.texts):
            cancelled.append(activity)
            comfyui.interrupt()

    outcome = comfyui.run(graph, on_message=cancel)
    assert (outcome.end, cancelled) == ("execution_interrupted", [activity])
    done, total = outcome.texts[-1].removeprefix(activity).split("/")
    assert int(done) < int(total)


def test_equal_nodes_train_once_and_different_nodes_separately(comfyui, toy_graph, new_seed):
    graph = toy_graph(seed=new_seed, name="two")
    same, other = dict(graph["3"]), dict(graph["3"])
    other["inputs"] = {**other["inputs"], "seed": new_seed + 500, "name": "another"}
    # The id of a node in a subgraph begins with the ids of the nodes around it.
    graph |= {"10:3": same, "10:12:3": other}
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.steps.count(3) == 2
    files = [name for name in comfyui.trained() if name.startswith(("two", "another"))]
    assert files == ["another.safetensors", "two.safetensors"]
    nodes = {data["node"] for kind, data in outcome.events if kind == "dreambooth.checkpoint"}
    assert len(nodes) == 2
    assert "10:12:3" in nodes


@pytest.mark.posix
def test_a_full_disk_leaves_no_partial_file(full_comfyui, toy_graph):
    outcome = full_comfyui.run(toy_graph(name="large"))
    assert outcome.end == "execution_error"
    node, message = outcome.error
    assert node == "3"
    assert "File too large" in message
    assert full_comfyui.trained() == []
    parts = [path for path in full_comfyui.base.rglob("*.part") if path.is_file()]
    assert parts == []


def test_photos_from_the_graph_are_used(comfyui, toy_graph, new_seed):
    graph = toy_graph("none, only the images below", seed=new_seed, name="from graph")
    graph["2"]["inputs"]["images.image0"] = ["6", 0]
    graph["6"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": 512, "height": 512, "batch_size": 2, "color": 0x336699},
    }
    assert comfyui.run(graph).end == "execution_success"
    graph["2"]["inputs"].pop("images.image0")
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_error"
    assert outcome.error == (
        "2",
        "folder is 'none, only the images below', and no images are connected. Choose a folder, "
        "or connect an image.",
    )


def test_class_images_are_drawn_once_and_used(comfyui, toy_graph, priors_node, new_seed):
    graph = toy_graph(seed=new_seed, name="with priors", **{"preset.prior_weight": 1.0})
    graph["3"]["inputs"]["class_dataset"] = ["6", 0]
    graph["3"]["inputs"]["preview_settings"] = ["7", 0]
    graph["6"] = priors_node(2)
    graph["7"] = {
        "class_type": "DreamBoothPreviewSettings",
        "inputs": {
            "prompts": "a photo of sks cup", "every": 2, "scheduler": "DDIM", "steps": 2,
            "guidance_scale": 4.0, "negative_prompt": "", "seed": 0,
        },
    }  # fmt: skip
    graph["8"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 3]}}
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert "Class images 2/2" in outcome.texts
    (view,) = outcome.outputs("3")["dreambooth"]
    assert [preview["step"] for preview in view["previews"]] == [0, 2, 3]
    assert outcome.num_previews == 0, "they would be drawn over the panel"
    assert len(outcome.outputs("8")["images"]) == 1
    albums = (comfyui.base / "output" / "dreambooth" / "class_images").iterdir()
    assert 2 in [len(list(album.glob("*.png"))) for album in albums]
    graph["6"]["inputs"]["images.num_images"] = 3
    assert comfyui.run(graph).steps[-1] == 3
    graph["6"]["inputs"]["images.num_images"] = 2
    assert comfyui.run(graph).steps == []


@pytest.mark.parametrize(
    ("chosen", "rows"), [(("none", "none"), 1), (("PNDM", "Euler"), 3), (("DDIM", "PNDM"), 2)]
)
def test_each_chosen_scheduler_draws_each_prompt_once(comfyui, toy_graph, chosen, rows):
    graph = {number: toy_graph()[number] for number in ("1", "4", "5")}
    graph["4"]["inputs"] |= dict(zip(("second_scheduler", "third_scheduler"), chosen, strict=True))
    graph["4"]["inputs"]["model_source"] = ["1", 0]
    graph["5"]["inputs"]["images"] = ["4", 0]
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert len(outcome.outputs("5")["images"]) == 2 * rows


def test_an_output_without_previews_is_empty_and_the_node_says_what_to_connect(
    comfyui, toy_graph, new_seed
):
    graph = toy_graph(seed=new_seed, name="no previews")
    graph["8"] = {"class_type": "PreviewImage", "inputs": {"images": ["3", 3]}}
    outcome = comfyui.run(graph)
    assert outcome.end == "execution_success", outcome.error
    assert "8" not in [data["node"] for kind, data in outcome.events if kind == "executed"]
    assert outcome.last_texts["3"].splitlines()[1:] == [NO_PREVIEWS]
    assert NO_PREVIEWS in comfyui.log.read_text()
    graph["3"]["inputs"] |= {"preview_settings": ["7", 0], "on_existing": "retrain"}
    graph["7"] = {
        "class_type": "DreamBoothPreviewSettings",
        "inputs": {"prompts": "a photo of sks cup", "every": 3, "steps": 2},
    }
    outcome = comfyui.run(graph)
    assert len(outcome.outputs("8")["images"]) == 1
    assert NO_PREVIEWS not in outcome.last_texts["3"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"preset": "object"},
            "preset is object, which is not made for 'toy (embedded)', a small model. Choose auto, "
            "which fits the model.",
        ),
        (
            {"preset.prior_weight": 1.0},
            "prior_weight is 1, but no class images are connected. Connect Generate Class Priors "
            "to class_dataset, or set prior_weight to 0.",
        ),
        (
            {"name": "../cup"},
            "name must be a plain file name, got '../cup': it leads out of its folder.",
        ),
        (
            {"name": "a/../cup"},
            "name must be a plain file name, got 'a/../cup': it leads out of its folder.",
        ),
        (
            {"name": "nul"},
            "name must be a plain file name, got 'nul': Windows reserves it for a device.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_on_the_node(comfyui, toy_graph, settings, message):
    outcome = comfyui.run(toy_graph(**settings))
    assert outcome.end == "execution_error"
    assert outcome.error == ("3", message)


def test_the_toy_model_is_refused_for_comfyuis_own_samplers(comfyui, toy_graph):
    graph = {
        "1": toy_graph()["1"],
        "2": {"class_type": "DreamBoothUseTrainedModel", "inputs": {"model_source": ["1", 0]}},
        "3": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": 64, "height": 64, "batch_size": 1},
        },
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 2]}},
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
    }
    outcome = comfyui.run(graph)
    assert outcome.error == (
        "2",
        "'toy (embedded)' is a small model like the embedded toy, and ComfyUI's own samplers need "
        "a full-size model. Use Sample with Scheduler instead.",
    )


def test_a_corrupt_photo_is_named(comfyui, toy_graph, photos):
    folder, name = photos("corrupt")
    (folder / "broken.png").write_bytes(b"not an image")
    outcome = comfyui.run(toy_graph(name))
    assert outcome.error == (
        "2",
        "'broken.png' cannot be read as an image: its content is none of BMP, GIF, JPEG, PNG, "
        "TIFF, WEBP. Replace it, or remove it.",
    )


def test_an_empty_folder_is_named(comfyui, toy_graph):
    folder = comfyui.base / "input" / "empty"
    folder.mkdir()
    outcome = comfyui.run(toy_graph("input/empty"))
    assert outcome.error == (
        "2",
        f"No images in {folder}. Looked for .bmp, .gif, .jpeg, .jpg, .png, .tif, .tiff, .webp.",
    )


@pytest.mark.posix
def test_a_linked_folder_outside_is_refused(comfyui, toy_graph, tmp_path):
    shutil.copytree(PHOTOS, tmp_path / "private")
    os.symlink(tmp_path / "private", comfyui.base / "input" / "linked")
    outcome = comfyui.run(toy_graph("input/linked"))
    assert outcome.error == (
        "2",
        f"'linked' is a link that leads out of {comfyui.base / 'input'}. Copy the files there "
        "instead.",
    )


@pytest.mark.parametrize("folder", ["../..", "/etc", "input/../../custom_nodes", "input/con"])
def test_folders_that_are_not_in_the_menu_are_not_queued(comfyui, toy_graph, folder):
    status, answer = comfyui.post("/prompt", {"prompt": toy_graph(folder)})
    assert status == 400
    (error,) = answer["node_errors"]["2"]["errors"]
    assert error["type"] == "value_not_in_list"


@pytest.mark.parametrize(
    ("node", "value"),
    [
        ("1", "../../../etc/passwd"),
        ("1", "/etc/passwd"),
        ("6", "../.."),
        ("6", "/etc"),
    ],
)
def test_checkpoints_and_class_folders_that_are_not_in_the_menu_are_not_queued(
    comfyui, toy_graph, priors_node, node, value
):
    graph = toy_graph()
    graph["1"]["inputs"]["checkpoint"] = (
        value if node == "1" else graph["1"]["inputs"]["checkpoint"]
    )
    graph["6"] = priors_node(1)
    if node == "6":
        graph["6"]["inputs"] |= {"images": "a folder of my own", "images.folder": value}
        graph["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
    status, answer = comfyui.post("/prompt", {"prompt": graph})
    assert status == 400
    errors = answer["node_errors"][node]["errors"]
    assert [error["type"] for error in errors] == ["value_not_in_list"]


@pytest.mark.parametrize(
    ("node", "field", "value", "message"),
    [
        (
            "1",
            "checkpoint",
            "../../../../etc/passwd",
            "There is no checkpoint '../../../../etc/passwd' in ComfyUI's checkpoints folders. "
            "Choose one from the menu; new files appear in it after a refresh (R).",
        ),
        (
            "2",
            "folder",
            "input/../../..",
            "'../../..' cannot be used as a name: it leads out of its folder. Choose one from the "
            "menu, or a plain name.",
        ),
        (
            "2",
            "folder",
            "/etc",
            "There is no folder '/etc'. Choose one from the menu, or drop photos on Load Instance "
            "Images, which makes one.",
        ),
        (
            "2",
            "folder",
            "input//etc",
            "'/etc' cannot be used as a name: it leads out of its folder. Choose one from the "
            "menu, or a plain name.",
        ),
    ],
)
def test_an_unsafe_name_from_another_node_is_refused(
    comfyui, toy_graph, node, field, value, message
):
    graph = toy_graph()
    graph["9"] = {"class_type": "AnyText", "inputs": {"text": value}}
    graph[node]["inputs"][field] = ["9", 0]
    outcome = comfyui.run(graph)
    assert outcome.error == (node, message)


def test_a_file_that_is_not_a_checkpoint_is_named(comfyui, toy_graph):
    path = comfyui.base / "models" / "checkpoints" / "note.safetensors"
    path.write_bytes(b"a note")
    graph = toy_graph()
    graph["1"]["inputs"]["checkpoint"] = path.name
    outcome = comfyui.run(graph)
    path.unlink()
    node, message = outcome.error
    assert node == "1"
    assert message.startswith("'note.safetensors' ")
