"""Textual Inversion Train inside a real ComfyUI: its runs, its embedding files, and the placeholder
in the following nodes."""

import re

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.xdist_group("comfyui")

PLACEHOLDER = "<my-cup>"
OPTIMIZER = {
    "optimizer": "AdamW", "weight_decay": 0.01, "max_grad_norm": 1.0, "lr_schedule": "constant",
    "warmup_steps": 0, "num_restarts": 1, "text_encoder_learning_rate": 0.0,
    "text_encoder_stop_step": 0, "precision": "fp32", "gradient_accumulation": 1,
    "gradient_checkpointing": False, "channels_last": False, "compile": False,
    "file_dtype": "as input", "ema": False, "ema_decay": 0.999, "min_snr_gamma": 0.0,
    "noise_offset": 0.0, "train_embedding": False,
}  # fmt: skip
"""The defaults of Optimizer Settings."""


@pytest.fixture
def graph(toy_graph, new_seed):
    """Builds the toy workflow with Textual Inversion Train as node 3. Keyword arguments are its
    inputs."""

    def build(**settings):
        graph = toy_graph()
        graph["2"]["inputs"]["instance_prompt"] = f"a photo of {PLACEHOLDER}"
        graph["3"] = {
            "class_type": "DreamBoothTextualInversionTrain",
            "inputs": {
                "model_source": ["1", 0], "dataset": ["2", 0], "placeholder": PLACEHOLDER,
                "initializer": "cup", "num_vectors": 0, "preset": "toy",
                "preset.learning_rate": 3e-3, "preset.steps": 3, "preset.batch_size": 1,
                "preset.templates": "captions", "seed": new_seed, "save_every": 0,
                "name": f"cup-{new_seed}", "on_existing": "reuse", **settings,
            },
        }  # fmt: skip
        graph["4"]["inputs"]["prompts"] = f"a photo of {PLACEHOLDER}\na photo of a cup"
        graph["6"] = {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}}
        return graph

    return build


@pytest.fixture
def then_dreambooth(toy_graph):
    """Inserts DreamBooth Train, as node 7, between Textual Inversion Train and the sampling."""

    def extend(graph, **settings):
        train = toy_graph(**settings)["3"]
        train["inputs"]["model_source"] = ["3", 0]
        graph["4"]["inputs"]["model_source"] = ["7", 0]
        return graph | {"7": train}

    return extend


def optimizer(**changes):
    return {"class_type": "DreamBoothOptimizerSettings", "inputs": OPTIMIZER | changes}


def embeddings(comfyui, seed):
    """Return the names of the embeddings that the run of this seed wrote."""
    return sorted(path.name for path in (comfyui.base / "models" / "embeddings").glob(f"*{seed}*"))


def name_of(outcome):
    """Return the value of the output `embedding name`."""
    return "".join(outcome.outputs("6")["text"])


def drawn(comfyui, outcome):
    """Return the grid [H, W, 3] of one image per prompt, with titles."""
    (saved,) = outcome.outputs("5")["images"]
    with Image.open(comfyui.base / "output" / saved["filename"]) as image:
        return np.asarray(image.convert("RGB"), dtype=float)


def test_training_writes_an_embedding(comfyui, graph, new_seed):
    outcome = comfyui.run(graph())
    assert outcome.end == "execution_success", outcome.error
    assert outcome.steps[-1] == 3
    assert embeddings(comfyui, new_seed) == [f"cup-{new_seed}.safetensors"]
    assert name_of(outcome) == f"cup-{new_seed}"
    assert f"cup-{new_seed}" in comfyui.get("/embeddings")
    # The panel on the node gets everything that it shows.
    (view,) = outcome.outputs("3")["dreambooth"]
    assert (view["state"], view["file"]) == ("finished", f"cup-{new_seed}")


def test_a_finished_run_is_reused_and_never_overwritten(comfyui, graph, new_seed):
    assert comfyui.run(graph()).steps[-1] == 3
    comfyui.run(graph(seed=new_seed + 500))  # This empties ComfyUI's cache of results.
    again = comfyui.run(graph())
    assert (again.end, again.steps) == ("execution_success", [])
    assert name_of(again) == f"cup-{new_seed}"
    retrained = comfyui.run(graph(on_existing="retrain"))
    assert retrained.steps[-1] == 3
    names = [f"cup-{new_seed}", f"cup-{new_seed}_00001", f"cup-{new_seed}_00002"]
    assert embeddings(comfyui, new_seed) == [f"{name}.safetensors" for name in names]
    assert name_of(retrained) == names[-1]


def test_cancelling_stops_it_and_the_next_queue_resumes(comfyui, graph):
    stopped_at = []

    def stop(outcome):
        if outcome.steps and outcome.steps[-1] >= 2 and not stopped_at:
            comfyui.interrupt()
            stopped_at.append(outcome.steps[-1])

    outcome = comfyui.run(graph(**{"preset.steps": 4000}), on_message=stop)
    assert outcome.end == "execution_interrupted"
    stopped = int(re.findall(r"Stopped after step (\d+)", comfyui.log.read_text())[-1])
    stopped_at.clear()
    outcome = comfyui.run(graph(**{"preset.steps": 4000}), on_message=stop)
    assert f"Resuming after step {stopped}." in comfyui.log.read_text()
    assert outcome.steps[0] > stopped


def test_the_placeholder_stands_for_the_learned_vectors_when_sampling(comfyui, graph):
    """After so short a training they still equal the initializer's, which draws the same image."""
    short = graph(**{"preset.learning_rate": 1e-7, "preset.steps": 1})
    images = {}
    for model, prompt in (("3", f"a photo of {PLACEHOLDER}"), ("1", "a photo of cup")):
        short["4"]["inputs"] |= {"model_source": [model, 0], "prompts": prompt}
        outcome = comfyui.run(short)
        assert outcome.end == "execution_success", outcome.error
        images[model] = drawn(comfyui, outcome)
    short["4"]["inputs"] |= {"model_source": ["1", 0], "prompts": f"a photo of {PLACEHOLDER}"}
    unknown = drawn(comfyui, comfyui.run(short))
    side = 128  # The titles, above and to the left, differ.
    learned, initializer, unknown = (
        image[-side:, -side:] for image in (images["3"], images["1"], unknown)
    )
    assert np.abs(learned - initializer).mean() < 1
    assert np.abs(learned - unknown).mean() > 5


def test_dreambooth_trains_with_the_embedding(comfyui, graph, then_dreambooth, new_seed):
    both = then_dreambooth(graph(), seed=new_seed, name=f"both-{new_seed}")
    outcome = comfyui.run(both)
    assert outcome.end == "execution_success", outcome.error
    assert f"both-{new_seed}.safetensors" in comfyui.trained()
    assert embeddings(comfyui, new_seed) == [f"cup-{new_seed}.safetensors"]
    both["7"]["inputs"]["optimizer_settings"] = ["8", 0]
    both["8"] = optimizer(train_embedding=True)
    outcome = comfyui.run(both)
    assert outcome.end == "execution_success", outcome.error
    assert f"both-{new_seed}-embedding.safetensors" in embeddings(comfyui, new_seed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"name": "my cup"},
            "name is 'my cup', and ' ' would end it in a prompt: embedding:my cup. Use letters, "
            "digits, -, _ and /.",
        ),
        (
            {"name": "../../cup"},
            "name must be a plain file name, got '../../cup': it leads out of its folder.",
        ),
        (
            {"placeholder": "cup"},
            "The placeholder 'cup' is already a word of CLIP's vocabulary, and would change that "
            "word's meaning in every prompt. Use a new word, such as '<cup>'.",
        ),
        (
            {"initializer": "white cup", "num_vectors": 1},
            "The initializer 'white cup' has 2 words, but num_vectors is 1. Set num_vectors to 2 "
            "or more, or use fewer words.",
        ),
        (
            {"preset": "textual inversion"},
            "preset is textual inversion, which is not made for 'toy (embedded)', a small "
            "model. Choose auto, which fits the model.",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_on_the_node(comfyui, graph, settings, message):
    outcome = comfyui.run(graph(**settings))
    assert outcome.end == "execution_error"
    assert outcome.error == ("3", message)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_encoder_learning_rate", 1e-6),
        ("text_encoder_stop_step", 100),
        ("train_embedding", True),
    ],
)
def test_settings_that_only_dreambooth_uses_are_refused(comfyui, graph, name, value):
    refused = graph(optimizer_settings=["8", 0]) | {"8": optimizer(**{name: value})}
    outcome = comfyui.run(refused)
    assert outcome.error == (
        "3",
        f"{name} of Optimizer Settings is {value}, which has no effect in textual inversion: only "
        "the new token is trained. Set it to its default, or disconnect Optimizer Settings.",
    )


def test_other_optimizer_settings_are_used(comfyui, graph):
    settings = optimizer(optimizer="Lion", gradient_accumulation=2, lr_schedule="cosine")
    outcome = comfyui.run(graph(optimizer_settings=["8", 0]) | {"8": settings})
    assert outcome.end == "execution_success", outcome.error


@pytest.mark.parametrize(
    ("node", "name"), [("2", "instance_prompt"), ("4", "prompts"), ("8", "prompts")]
)
def test_comfyuis_embedding_syntax_is_refused_in_our_prompts(comfyui, graph, node, name):
    prompts = {
        "prompts": f"a photo of {PLACEHOLDER}", "every": 2, "scheduler": "DDIM", "steps": 2,
        "guidance_scale": 4.0, "negative_prompt": "", "seed": 0,
    }  # fmt: skip
    refused = graph(preview_settings=["8", 0])
    refused["8"] = {"class_type": "DreamBoothPreviewSettings", "inputs": prompts}
    refused[node]["inputs"][name] = "a photo of embedding:my-cup"
    assert comfyui.run(refused).error == (
        node,
        f"{name} has 'a photo of embedding:my-cup', but embedding:name is for ComfyUI's own "
        "prompts. Write the placeholder of Textual Inversion Train instead, such as '<my-dog>'.",
    )


def test_a_checkpoint_name_that_its_embedding_cannot_have_is_refused(
    comfyui, graph, then_dreambooth
):
    both = then_dreambooth(graph(), name="my cup", optimizer_settings=["8", 0])
    both["8"] = optimizer(train_embedding=True)
    assert comfyui.run(both).error == (
        "7",
        "name is 'my cup', and ' ' would end it in a prompt: embedding:my cup. Use letters, "
        "digits, -, _ and /.",
    )


def test_a_name_with_a_subfolder_is_what_prompts_contain(comfyui, graph, new_seed):
    name = f"cups/%year%/cup-{new_seed}.safetensors"
    outcome = comfyui.run(graph(name=name, **{"preset.steps": 1}))
    assert outcome.end == "execution_success", outcome.error
    (path,) = (comfyui.base / "models" / "embeddings").rglob(f"*{new_seed}*")
    assert path.parent.parent.name == "cups"
    shown = f"cups/{path.parent.name}/cup-{new_seed}"
    assert name_of(outcome) == shown
    assert shown in comfyui.get("/embeddings")


def test_sampling_without_the_placeholder_is_refused(comfyui, graph):
    short = graph(**{"preset.steps": 1})
    short["4"]["inputs"]["prompts"] = "a photo of a cup"
    outcome = comfyui.run(short)
    assert outcome.error == (
        "4",
        f"The embedding's placeholder {PLACEHOLDER!r} appears in no prompt, so the embedding would "
        f"have no effect. Add it to a prompt, for example 'a photo of {PLACEHOLDER}', or use the "
        "model without the embedding.",
    )
    short["4"]["inputs"]["negative_prompt"] = PLACEHOLDER
    assert comfyui.run(short).end == "execution_success"
