"""DreamBooth Train with `trains` set to LoRA, inside a real ComfyUI: its runs and files, and the
strengths at which nodes draw with them."""

import json

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.nodes.drawing import draw, sampling, shown

pytestmark = pytest.mark.xdist_group("comfyui")

RANK = 3
"""Of the LoRAs of `lora_graph`."""
NO_CHECKPOINT = (
    "A LoRA was trained, so checkpoint name is empty. Use lora name, or set trains to full weights."
)
NO_LORA = (
    "Full weights were trained, so lora name is empty. Set trains to LoRA to train one, or to full "
    "weights and a LoRA to extract one too."
)
NO_EFFECT = (
    "lora_strength has no effect, because the model source has no LoRA. Connect a training with "
    "trains set to LoRA, or Apply LoRA."
)


@pytest.fixture
def graph(lora_graph):
    return lora_graph


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_lora_is_trained_drawn_with_and_reused(comfyui, graph, new_seed, lora_files):
    before = comfyui.trained()
    prompt = graph()
    prompt |= {"6": shown(["3", 6]), "7": shown(["3", 1])}
    nodes = {
        "base": sampling(["1", 0]),
        "none": sampling(["3", 0], lora_strength=0.0),
        "half": sampling(["3", 0], lora_strength=0.5),
        "whole": sampling(["3", 0]),
    }
    outcome, images = draw(comfyui, prompt, **nodes)
    assert outcome.steps[-1] == 3
    assert np.array_equal(images["none"], images["base"])
    far, near = (np.abs(images[name] - images["base"]).mean() for name in ("whole", "half"))
    assert far > near > 0.5
    # The file is in the folder of LoRAs, and its name is that of Load LoRA.
    name = f"dreambooth/lora-{new_seed}.safetensors"
    assert list(lora_files()) == [f"lora-{new_seed}.safetensors"]
    assert "".join(outcome.outputs("6")["text"]) == name
    assert name in comfyui.get("/models/loras")
    assert comfyui.trained() == before
    # The checkpoint's name is not there, and the node says so; it shows the name of the LoRA.
    assert "7" not in [data["node"] for kind, data in outcome.events if kind == "executed"]
    assert NO_CHECKPOINT in outcome.last_texts["3"]
    (view,) = outcome.outputs("3")["dreambooth"]
    assert (view["file"], view["state"]) == (name, "finished")
    # Queued again, the run is found.
    prompt["3"]["inputs"]["on_existing"] = "resume"
    again, repeated = draw(comfyui, prompt, whole=nodes["whole"])
    assert again.steps == []
    assert f"Trained before: {name}" in again.last_texts["3"]
    assert np.array_equal(repeated["whole"], images["whole"])
    assert list(lora_files()) == [f"lora-{new_seed}.safetensors"]


def test_the_file_has_the_rank_the_factor_and_the_layers_that_were_chosen(
    comfyui, graph, new_seed, lora_files
):
    chosen = {"alpha": 6.0, "conv_rank": 2, "dora": True, "layers": "attn2, resnets"}
    outcome = comfyui.run(graph(chosen, **{"preset.steps": 1}))
    assert outcome.end == "execution_success", outcome.error
    (path,) = lora_files().values()
    file = load_file(path)
    ranks = {
        name: len(tensor) for name, tensor in file.items() if name.endswith("lora_down.weight")
    }
    assert {rank for name, rank in ranks.items() if "attn2" in name} == {RANK}
    assert {rank for name, rank in ranks.items() if "resnets" in name} == {2}
    assert all("attn2" in name or "resnets" in name for name in file)
    assert {value.item() for name, value in file.items() if name.endswith(".alpha")} == {6.0, 4.0}
    assert any(name.endswith(".dora_scale") for name in file)


def test_saves_and_the_best_step_are_loras(comfyui, graph, new_seed, lora_files):
    prompt = graph(preview_settings=["5", 0], save_every=1, keep_saves=2, **{"preset.steps": 4})
    prompt["5"] = {
        "class_type": "DreamBoothPreviewSettings",
        "inputs": {
            "prompts": "a photo of sks cup at night", "every": 1, "scheduler": "DDIM", "steps": 2,
            "guidance_scale": 4.0, "seed": 0, "negative_prompt": "", "judge": "toy (embedded)",
            "class_prompt": "a photo of a cup", "num_class_images": 2,
        },
    }  # fmt: skip
    prompt["9"] = {
        "class_type": "DreamBoothCompareSettings",
        "inputs": {
            "saves": ["3", 4], "model_sources.model_source0": ["1", 0], "photos": ["2", 1],
            "prompts": "a photo of sks cup at night", "scheduler": "DDIM", "steps": "2",
            "guidance_scale": 4.0, "seed": 1, "judge": "toy (embedded)",
            "lora_strengths": "0, 1",
        },
    }  # fmt: skip
    prompt["10"] = shown(["9", 3])
    night = {"prompts": "a photo of sks cup at night"}
    outcome, images = draw(
        comfyui, prompt, best=sampling(["3", 5], **night), last=sampling(["3", 0], **night)
    )
    # The base model has no LoRA, so it is drawn once.
    stages = [f"lora-{new_seed}-step000003", f"lora-{new_seed}"]
    rows = [f"{stage}, strength {strength}" for stage in stages for strength in (0, 1)]
    table = "".join(outcome.outputs("10")["text"]).splitlines()[1:]
    titles, *scores = zip(*(line.rsplit(maxsplit=3) for line in table), strict=True)
    assert list(titles) == ["toy (embedded)", *rows]
    base, without, with_first, without_again, with_last = zip(*scores, strict=True)
    assert base == without == without_again
    assert base != with_first != with_last
    # With a best step before the last, its file is another one.
    has_best = f"lora-{new_seed}-best.safetensors" in lora_files()
    assert has_best == (not np.array_equal(images["best"], images["last"]))


def test_the_newest_lora_is_trained_further(comfyui, graph, new_seed, lora_files):
    prompt = graph()
    (further,) = (graph({"continue_lora": True, "rank": RANK + 1}, name=f"further-lora-{new_seed}")
                  [number] for number in ("3",))  # fmt: skip
    # At this rate nothing changes that an image could show.
    rate = {"preset.learning_rate": 1e-6, "preset.steps": 1, "model_source": ["3", 0]}
    further["inputs"] |= rate
    prompt["6"] = further
    outcome, images = draw(comfyui, prompt, first=sampling(["3", 0]), then=sampling(["6", 0]))
    assert outcome.warnings[0] == (
        f"'lora-{new_seed}.safetensors' is trained further with the layers and ranks that it has, "
        "so these settings have no effect: rank."
    )
    # The result replaces the first LoRA: on top of it, the change would be twice as large.
    assert np.abs(images["then"] - images["first"]).max() <= 2
    files = lora_files()
    first = load_file(files[f"lora-{new_seed}.safetensors"])
    then = load_file(files[f"further-lora-{new_seed}.safetensors"])
    assert then.keys() == first.keys()
    assert all((then[name].float() - first[name].float()).abs().max() < 1e-4 for name in first)


def test_a_second_lora_is_trained_on_top_of_the_first(comfyui, graph, new_seed, lora_files):
    prompt = graph()
    prompt["6"] = graph(name=f"second-lora-{new_seed}", model_source=["3", 0])["3"]
    outcome, images = draw(
        comfyui, prompt,
        first=sampling(["3", 0]), both=sampling(["6", 0]),
        without=sampling(["6", 0], lora_strength=0.0),
    )  # fmt: skip
    # The strength is that of the newest one alone.
    assert np.array_equal(images["without"], images["first"])
    assert not np.array_equal(images["both"], images["first"])
    second = lora_files()[f"second-lora-{new_seed}.safetensors"]
    assert metadata(second)["dreambooth.loras"].endswith(" 1")


def test_a_new_word_is_learned_beside_the_lora(comfyui, graph, new_seed):
    word = {"placeholder": "<my-cup>", "initializer": "cup", "embedding_learning_rate": 5e-3}
    prompt = graph(word)
    prompt["2"]["inputs"]["instance_prompt"] = "a photo of <my-cup>"
    outcome, images = draw(comfyui, prompt, drawn=sampling(["3", 0], prompts="a photo of <my-cup>"))
    (embedding,) = (comfyui.base / "models" / "embeddings").glob(f"*{new_seed}*")
    assert embedding.name == f"lora-{new_seed}-embedding.safetensors"
    assert images["drawn"].std() > 10
    prompt["3"]["inputs"]["name"] = "my cup"
    assert comfyui.run(prompt).error == (
        "3",
        "name is 'my cup', and ' ' would end it in a prompt: embedding:my cup. Use letters, "
        "digits, -, _ and /.",
    )


def test_optimizer_settings_apply_to_a_lora(comfyui, graph, new_seed, lora_files):
    prompt = graph(optimizer_settings=["8", 0], **{"preset.train_text_encoder": True})
    settings = {
        "optimizer": "Lion", "text_encoder_learning_rate": 1e-3, "text_encoder_stop_step": 2,
        "file_dtype": "fp32",
    }  # fmt: skip
    prompt["8"] = {"class_type": "DreamBoothOptimizerSettings", "inputs": settings}
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    (path,) = lora_files().values()
    found = metadata(path)
    assert found["ss_optimizer"] == "Lion"
    (method,) = json.loads(found["dreambooth.method"]).items()
    assert method[0] == "LoRA"
    assert method[1]["text_encoder_learning_rate"] == 1e-3
    assert method[1]["text_encoder_stop_step"] == 2
    file = load_file(path)
    assert any(name.startswith("lora_te") for name in file)
    settings["weights"], settings["precision"] = "24 bit", "bf16"
    assert comfyui.run(prompt).error == (
        "3",
        "weights is 24 bit, but a LoRA itself is always trained in fp32; it is small. Set weights "
        "to fp32. The base model is kept in the precision of the run.",
    )


def test_full_weights_and_a_lora_come_from_one_run(comfyui, graph, new_seed, lora_files):
    """The run is reused, and so is the LoRA."""
    both = {"trains": "full weights and a LoRA", "preset": "toy", "preset.learning_rate": 1e-2}
    prompt = graph(**both, name=f"both-{new_seed}")
    prompt["3"]["inputs"] = {
        name: value for name, value in prompt["3"]["inputs"].items() if name != "trains.rank"
    } | {"trains.extracted_rank": 4}
    prompt |= {"6": shown(["3", 6]), "7": shown(["3", 1])}
    name = f"dreambooth/both-{new_seed}.safetensors"
    for told in ("Wrote", "Found"):
        outcome = comfyui.run(prompt)
        assert outcome.end == "execution_success", outcome.error
        assert "".join(outcome.outputs("6")["text"]) == name
        assert "".join(outcome.outputs("7")["text"]) == name
        lines = outcome.last_texts["3"].splitlines()
        (text,) = [line for line in lines if line.startswith(f"{told} {name}: ")]
        assert "layers of rank 4 keep" in text
        prompt["3"]["inputs"]["on_existing"] = "resume"
    (path,) = lora_files().values()
    tensors = load_file(path)
    assert {len(t) for key, t in tensors.items() if key.endswith("lora_down.weight")} == {4}
    assert metadata(path)["dreambooth.trained_sha256"]


def test_workflows_that_are_older_train_full_weights(comfyui, graph, new_seed):
    settings = {"preset": "toy", "name": f"full-{new_seed}"}
    prompt = graph(**settings)
    older = {
        name: value
        for name, value in prompt["3"]["inputs"].items()
        if not name.startswith("trains")
    }
    prompt["3"]["inputs"] = older
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    assert f"full-{new_seed}.safetensors" in comfyui.trained()
    assert NO_LORA not in outcome.last_texts["3"]
    # It is the run that the first choice of the menu trains.
    prompt["3"]["inputs"] = {**older, "trains": "full weights", "on_existing": "resume"}
    prompt["6"] = shown(["3", 6])
    again = comfyui.run(prompt)
    assert (again.end, again.steps) == ("execution_success", [])
    assert "6" not in [data["node"] for kind, data in again.events if kind == "executed"]
    assert NO_LORA in again.last_texts["3"]


def test_a_strength_without_a_lora_has_no_effect_and_warns(comfyui, graph):
    prompt = {"1": graph()["1"]}
    nodes = {"base": sampling(["1", 0]), "half": sampling(["1", 0], lora_strength=0.5)}
    outcome, images = draw(comfyui, prompt, **nodes)
    assert np.array_equal(images["base"], images["half"])
    assert outcome.warnings == [NO_EFFECT]
    assert NO_EFFECT in outcome.last_texts["half"]
    assert NO_EFFECT not in outcome.last_texts["base"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preset": "toy"},
            "preset is toy, whose learning rate is made for full weights, but trains is set to "
            "train a LoRA. Choose the preset auto or LoRA toy, or set trains to full weights.",
        ),
        (
            {"preset": "textual inversion + DreamBooth"},
            "preset is textual inversion + DreamBooth, whose learning rate is made for full "
            "weights, but trains is set to train a LoRA. Choose the preset auto, or set trains to "
            "full weights.",
        ),
        (
            {"trains": "full weights"},
            "preset is LoRA toy, whose learning rate is made for a LoRA, but trains is set to "
            "train full weights. Choose the preset auto or toy, or set trains to LoRA.",
        ),
        (
            {"preset": "LoRA object"},
            "preset is LoRA object, which is not made for 'toy (embedded)', a small model. Choose "
            "auto, which fits the model.",
        ),
        (
            {"trains": "lora"},
            "trains must be one of full weights, LoRA, full weights and a LoRA, got 'lora'.",
        ),
        (
            {"trains.continue_lora": True},
            "continue_lora is on, but the model source has no LoRA. Connect a training with trains "
            "set to LoRA, or Apply LoRA; or switch continue_lora off to train a new one.",
        ),
        (
            {"trains.min_rank": 4},
            "min_rank is 4, but the rank is only 3. Choose a min_rank from 1 to 3.",
        ),
        (
            {"trains.initializer": "cup"},
            "initializer and num_vectors describe a new word, but placeholder is empty. Set "
            "placeholder, such as '<my-dog>', or leave them out.",
        ),
    ],
)  # fmt: skip
def test_values_that_do_not_go_together_are_refused(comfyui, graph, changes, message):
    assert comfyui.run(graph(**changes)).error == ("3", message)
