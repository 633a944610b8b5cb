"""What ComfyUI's own nodes do to MODEL, CLIP and VAE, and what of it a checkpoint can hold; and the
text encoder's layers, compared with ComfyUI's. Each change is made by the real node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.startup import STARTUP

pytestmark = pytest.mark.xdist_group("comfyui")

ROOT = Path(__file__).parents[2]
SCRIPT = (
    "import sys; path = sys.argv.pop()\n"
    + STARTUP
    + """
import json, torch
from pathlib import Path
from comfy_extras import nodes_freelunch, nodes_hypertile, nodes_model_advanced as advanced
from comfy_extras import nodes_tomesd, nodes_torch_compile
import comfy.hooks, comfy.model_patcher
graph_models, host = sys.modules["/pack.nodes.graph_models"], sys.modules["/pack.nodes.host"]
families = sys.modules["/pack.trainer.families"]

model, clip, vae = host.load_model(Path(path))
sampling = lambda kind, zsnr=False: advanced.ModelSamplingDiscrete().patch(model, kind, zsnr)[0]
layer = lambda number: nodes.CLIPSetLastLayer().set_last_layer(clip, number)[0]
def changed(thing, **attributes):
    copy = thing.clone()
    for name, value in attributes.items():
        setattr(copy, name, value)
    return copy
def injected(thing, key):
    copy = thing.clone()
    getattr(copy, "patcher", copy).set_injections(key, [])
    return copy
def hooked():
    hooks = comfy.hooks.create_hook_lora({}, 1.0, 1.0)
    copy = clip.clone()
    copy.patcher.forced_hooks = hooks
    return copy
def wrapped():
    copy = model.clone()
    copy.add_wrapper_with_key("diffusion_model", "theirs", lambda run, *args: run(*args))
    copy.add_object_patch("diffusion_model.out", torch.nn.Identity())
    return copy
def lora():
    copy = model.clone()
    key = "diffusion_model.out.2.bias"
    copy.add_patches({key: (torch.ones(4),)})
    return copy

continuous = advanced.ModelSamplingContinuousEDM().patch(model, "v_prediction", 120.0, 0.002)[0]
rescaled = advanced.RescaleCFG().patch(model, 0.7)[0]
cases = {
    "nothing": (model, clip),
    "lora": (lora(), clip),
    "v": (sampling("v_prediction"), clip),
    "eps": (sampling("eps"), clip),
    "zsnr": (sampling("v_prediction", True), clip),
    "zsnr of epsilon": (sampling("eps", True), clip),
    "lcm": (sampling("lcm"), clip),
    "x0": (sampling("x0"), clip),
    "continuous": (continuous, clip),
    "layer": (model, layer(-2)),
    "last": (model, layer(-1)),
    "too far": (model, layer(-24)),
    "from the start": (model, changed(clip, layer_idx=3)),
    "several": (model, changed(clip, layer_idx=[1, 2])),
    "freeu": (nodes_freelunch.FreeU_V2.execute(model, 1.3, 1.4, 0.9, 0.2)[0], clip),
    "rescale": (rescaled, clip),
    "both": (nodes_freelunch.FreeU.execute(rescaled, 1.3, 1.4, 0.9, 0.2)[0], layer(-3)),
    "hypertile": (nodes_hypertile.HyperTile.execute(model, 256, 2, 0, False)[0], clip),
    "tome": (nodes_tomesd.TomePatchModel.execute(model, 0.3)[0], clip),
    "tokenizer": (model, changed(clip, tokenizer_options={"min_length": 100})),
    "bypass": (injected(model, "bypass_lora"), clip),
    "bypass clip": (model, injected(clip, "bypass_lora")),
    "hooks": (model, hooked()),
    "another layer": (wrapped(), clip),
}
found = {}
for name, (one, other) in cases.items():
    try:
        found[name] = [graph_models.metadata(one, other, vae), graph_models.left_out(one, other)]
    except ValueError as error:
        found[name] = str(error)

from types import SimpleNamespace
patched = vae.patcher.clone()
patched.patches = {"decoder.conv_in.weight": []}
try:
    graph_models.metadata(model, clip, SimpleNamespace(patcher=patched))
except ValueError as error:
    found["vae"] = str(error)
bias = "model.diffusion_model.out.2.bias"
read = sys.modules["/pack.trainer.families.files"].CheckpointFile
plain, with_lora = (
    read(host.save_model(one, clip, vae, {})).tensor(bias) for one in (model, lora())
)
text, cpu = "a photo of sks dog, in the snow", torch.device("cpu")
def difference(theirs, ours):
    with torch.no_grad():
        encoded = ours.encode_captions([text]).hidden
    return (theirs.encode(text).float() - encoded).abs().max().item(), encoded.std().item()
layers = {}
for number in (-1, -2, -5, -12, -24):
    theirs = layer(number)
    saved = host.save_model(model, theirs, vae, graph_models.metadata(model, theirs, vae))
    ours = families.load(saved, cpu)
    again = host.load_model(saved, is_v=False, zero_snr=False, clip_skip=ours.clip_skip)[1]
    layers[number] = [ours.clip_skip, saved.name, difference(theirs, ours), difference(again, ours)]
moved = (with_lora - plain).tolist()
predicts, sampled = {}, {}
for zsnr in (False, True):
    predicting = sampling("v_prediction", zsnr)
    saved = host.save_model(predicting, clip, vae, graph_models.metadata(predicting, clip, vae))
    noise = families.load(saved, cpu).noise
    predicts[zsnr] = noise.prediction, noise.has_zero_terminal_snr
    again = host.load_model(saved, is_v=True, zero_snr=zsnr, clip_skip=None)[0]
    one, other = (each.get_model_object("model_sampling") for each in (predicting, again))
    is_same = type(one).__bases__ == type(other).__bases__
    sampled[zsnr] = [is_same, bool(torch.equal(one.sigmas, other.sigmas))]
print(json.dumps({
    "found": found, "layers": layers, "predicts": predicts, "sampled": sampled, "moved": moved,
}))
"""
)


@pytest.fixture(scope="module")
def seen(sd15_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of `SCRIPT`. One process for all checks, because loading ComfyUI takes long."""
    base = tmp_path_factory.mktemp("base")
    done = subprocess.run(
        [
            os.environ.get("COMFYUI_PYTHON", sys.executable), "-c", SCRIPT,
            os.environ["COMFYUI_PATH"], str(ROOT), str(base), str(sd15_checkpoint),
        ],
        capture_output=True, text=True, cwd=os.environ["COMFYUI_PATH"],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("change", "metadata", "left_out"),
    [
        ("nothing", {}, []),
        ("lora", {}, []),  # in the weights
        ("v", {"modelspec.prediction_type": "v"}, []),
        ("eps", {"modelspec.prediction_type": "epsilon"}, []),
        ("zsnr", {"modelspec.prediction_type": "v", "ss_zero_terminal_snr": "True"}, []),
        ("layer", {"dreambooth.clip_skip": "2"}, []),
        ("last", {}, []),
        ("too far", {}, []),
        ("from the start", {"dreambooth.clip_skip": "9"}, []),
        ("freeu", {}, ["FreeU_V2"]),
        ("rescale", {}, ["RescaleCFG"]),
        ("both", {"dreambooth.clip_skip": "3"}, ["FreeU", "RescaleCFG"]),
        ("hypertile", {}, ["HyperTile"]),
        ("tome", {}, ["TomePatchModel"]),
        ("tokenizer", {}, ["min_length"]),
    ],
)
def test_what_a_checkpoint_can_hold(seen, change, metadata, left_out):
    assert seen["found"][change] == [metadata, left_out]


ANOTHER = (
    "This MODEL has another model sampling ({}) than Stable Diffusion, which predicts epsilon or v "
    "with its usual noise, or v with zsnr, so it cannot be trained. Connect the MODEL from before "
    "the node that changes it, such as ModelSamplingDiscrete."
)
HIDDEN = (
    "This {0} has {1}, which changes its weights only while it runs, so no checkpoint can hold the "
    "change. Connect the {0} from before that node, or use Load LoRA, which changes the weights "
    "themselves."
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("zsnr of epsilon", ANOTHER.format("ModelSamplingDiscrete, EPS, zsnr")),
        ("lcm", ANOTHER.format("ModelSamplingDiscreteDistilled, LCM")),
        ("x0", ANOTHER.format("ModelSamplingDiscrete, X0")),
        ("continuous", ANOTHER.format("ModelSamplingContinuousEDM, V_PREDICTION")),
        ("bypass", HIDDEN.format("MODEL", "a LoRA in bypass mode")),
        ("bypass clip", HIDDEN.format("CLIP", "a LoRA in bypass mode")),
        ("hooks", HIDDEN.format("CLIP", "hooks")),
        ("another layer", HIDDEN.format("MODEL", "another 'diffusion_model.out'")),
        (
            "vae",
            "This VAE has patches, which ComfyUI does not save. Connect the VAE from Load VAE or "
            "Load Checkpoint.",
        ),
        (
            "several",
            "This CLIP uses the layers [1, 2], but a model is trained with one layer. Choose it "
            "with CLIP Set Last Layer.",
        ),
    ],
)
def test_what_no_checkpoint_can_hold_is_refused(seen, change, message):
    assert seen["found"][change] == message


@pytest.mark.parametrize(
    ("layer", "clip_skip"), [("-1", 1), ("-2", 2), ("-5", 5), ("-12", 12), ("-24", 1)]
)
def test_each_layer_encodes_as_in_comfyui(seen, layer, clip_skip):
    """From the graph to the trainer, and back through Use Trained Model."""
    found, _, *pairs = seen["layers"][layer]
    assert found == clip_skip
    for difference, size in pairs:
        assert size > 0.1
        assert difference < 1e-4


def test_layers_make_different_models_and_the_last_is_the_plain_one(seen):
    names = {layer: name for layer, (_, name, *_) in seen["layers"].items()}
    assert names["-1"] == names["-24"]
    assert len(set(names.values())) == 4


def test_patches_of_weights_are_in_the_saved_weights(seen):
    """LoRAs and merges are such patches."""
    assert seen["moved"] == pytest.approx([1.0] * 4, abs=1e-2)


def test_a_graph_that_predicts_v_is_trained_so(seen):
    assert seen["predicts"] == {"false": ["v", False], "true": ["v", True]}


def test_a_file_that_predicts_v_is_drawn_so(seen):
    """With the same noise levels as ModelSamplingDiscrete, also those of zero terminal SNR."""
    assert seen["sampled"] == {"false": [True, True], "true": [True, True]}
