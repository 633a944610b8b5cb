"""Extract LoRA and Save as Checkpoint inside a real ComfyUI, which loads both files with its own
nodes."""

import os
import re

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer.conversion.models import add_low_rank, changed, is_text, metadata_of

pytestmark = pytest.mark.xdist_group("comfyui")

NOT_LOADED = re.compile(r"not loaded|missing|unexpected|left over", re.IGNORECASE)


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def pair(comfyui, sd15_checkpoint):
    """A base model and one with a change of rank 4 of the U-Net and of a layer of the text encoder,
    in ComfyUI's checkpoints folder. fp16, Stable Diffusion 1.5's widths."""
    folder = comfyui.base / "models" / "checkpoints"
    base, trained = folder / "base15.safetensors", folder / "trained15.safetensors"
    os.link(sd15_checkpoint, base)

    def change(key, tensor):
        is_left = is_text(key) and ".layers.0." not in key
        return tensor if is_left else add_low_rank(4, 0.02)(key, tensor)

    changed(base, trained, change, **{"modelspec.trigger_phrase": "sks dog"})
    yield base, trained
    base.unlink()
    trained.unlink()


@pytest.fixture
def graph(pair, new_seed):
    """Builds an extraction as node 3, and as node 4 a checkpoint of the result. Keyword arguments
    are inputs of Extract LoRA."""
    base, trained = pair

    def build(**inputs):
        settings = {
            "base_source": ["1", 0], "trained_source": ["2", 0], "rule": "rank", "rule.rank": 4,
            "name": f"lora-{new_seed}", "file_dtype": "fp16", "judge": "none", **inputs,
        }  # fmt: skip
        return {
            "1": node("DreamBoothLoadBaseModel", checkpoint=base.name),
            "2": node("DreamBoothLoadBaseModel", checkpoint=trained.name),
            "3": node("DreamBoothExtractLoRA", **settings),
            "5": node("PreviewAny", source=["3", 1]),
            "6": node("PreviewAny", source=["3", 2]),
        }

    return build


def text(outcome, number):
    return "".join(outcome.outputs(number)["text"])


def largest_difference(one, other):
    one, other = load_file(one), load_file(other)
    return max((one[key].float() - other[key].float()).abs().max().item() for key in one)


def test_comfyui_applies_the_lora_and_loads_the_checkpoint(comfyui, graph, pair, new_seed):
    """Its patched weights are those of the trained checkpoint, and every key is used."""
    base, trained = pair
    since = len(comfyui.log.read_text())
    prompt = graph()
    prompt["4"] = node("DreamBoothSaveCheckpoint", model_source=["3", 0], name=f"whole-{new_seed}")
    prompt["7"] = node("PreviewAny", source=["4", 1])
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    name = os.path.join("dreambooth", f"lora-{new_seed}.safetensors")
    assert text(outcome, "5") == name
    assert re.fullmatch(
        r"\d+ layers of rank 4 keep (more than )?99\.\d % of what training changed in these "
        r"layers, and (more than )?99\.\d % of all that it changed\.", text(outcome, "6"),
    )  # fmt: skip
    lora = comfyui.base / "models" / "loras" / name
    assert metadata_of(lora)["modelspec.trigger_phrase"] == "sks dog"
    whole = os.path.join("dreambooth", f"whole-{new_seed}.safetensors")
    assert text(outcome, "7") == whole

    apply = {
        "1": node("CheckpointLoaderSimple", ckpt_name=base.name),
        "2": node("LoraLoader", model=["1", 0], clip=["1", 1], lora_name=name,
                  strength_model=1.0, strength_clip=1.0),
        "3": node("CheckpointSave", model=["2", 0], clip=["2", 1], vae=["1", 2],
                  filename_prefix=f"applied-{new_seed}"),
        "4": node("CheckpointLoaderSimple", ckpt_name=whole),
        "5": node("CheckpointSave", model=["4", 0], clip=["4", 1], vae=["4", 2],
                  filename_prefix=f"loaded-{new_seed}"),
    }  # fmt: skip
    outcome = comfyui.run(apply)
    assert outcome.end == "execution_success", outcome.error
    log = comfyui.log.read_text()[since:]
    assert [line for line in log.splitlines() if NOT_LOADED.search(line)] == []
    saved = comfyui.base / "output"
    applied, loaded = (
        saved / f"{what}-{new_seed}_00001_.safetensors" for what in ("applied", "loaded")
    )
    unchanged, whole_path = (
        largest_difference(base, trained),
        lora.parents[2] / "checkpoints" / whole,
    )
    assert unchanged > 0.05
    assert largest_difference(applied, trained) < 1e-3
    assert largest_difference(whole_path, trained) < 1e-3
    assert largest_difference(loaded, whole_path) == 0
    dtypes = {tensor.dtype for tensor in load_file(whole_path).values()}
    assert dtypes == {tensor.dtype for tensor in load_file(base).values()}
    assert torch.float16 in dtypes


def test_it_is_extracted_and_saved_once(comfyui, graph, new_seed):
    prompt = graph(**{"rule": "energy", "rule.energy": 0.9})
    prompt["3"]["inputs"].pop("rule.rank")
    prompt["4"] = node("DreamBoothSaveCheckpoint", model_source=["3", 0], name=f"whole-{new_seed}")
    first = comfyui.run(prompt)
    assert first.end == "execution_success", first.error
    name = os.path.join("dreambooth", f"lora-{new_seed}.safetensors")
    assert f"Wrote {name}: " in first.last_texts["3"]
    for number in "34":
        prompt[number]["inputs"]["name"] = "other"
    again = comfyui.run(prompt)
    assert text(again, "5") == name
    assert f"Found {name}: " in again.last_texts["3"]
    whole = os.path.join("dreambooth", f"whole-{new_seed}.safetensors")
    assert f"Found {whole}." in again.last_texts["4"]
    prompt["3"]["inputs"]["rule.energy"] = 0.5
    third = comfyui.run(prompt)
    assert text(third, "5") == os.path.join("dreambooth", "other.safetensors")


def test_a_trained_toy_is_compared_with_its_lora(comfyui, toy_graph, new_seed):
    """The judge and the photos; the LoRA is trained on top of nothing else."""
    prompt = toy_graph(seed=new_seed, name=f"cup-{new_seed}")
    for number in "45":
        del prompt[number]
    prompt["6"] = node(
        "DreamBoothExtractLoRA", base_source=["1", 0], trained_source=["3", 0], rule="energy",
        name=f"cup-{new_seed}", judge="toy (embedded)", photos=["2", 1], steps=2,
        prompts="a photo of sks cup\na photo of sks cup in the snow", guidance_scale=4.0,
        **{"rule.energy": 0.95},
    )  # fmt: skip
    prompt["7"] = node("PreviewAny", source=["6", 2])
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    kept, images = text(outcome, "7").split("\n")
    assert re.search(r"layers of ranks \d+ to \d+ keep 9[5-9]\.\d % of what training changed", kept)
    assert re.fullmatch(
        r"Images of the base model with the LoRA have a likeness of \d\.\d{3} to those of the "
        r"trained checkpoint, and those without it \d\.\d{3}\. Subject fidelity: base model "
        r"-?\d\.\d{3}, trained checkpoint -?\d\.\d{3}, base model with the LoRA -?\d\.\d{3}\.",
        images,
    )
    # The model source draws, and can be saved.
    prompt["8"] = node("DreamBoothSaveCheckpoint", model_source=["6", 0], name=f"back-{new_seed}")
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    assert f"back-{new_seed}.safetensors" in comfyui.trained()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trained_source": ["1", 0]},
            "All weights of 'base15.safetensors' equal those of 'base15.safetensors', so there is "
            "nothing to extract. Choose a trained checkpoint, and the base model that it was "
            "trained from.",
        ),
        ({"name": "a:b"}, "name must be a plain file name, got 'a:b': names cannot contain"),
        (
            {"judge": "toy (embedded)", "prompts": ""},
            "prompts is empty. Write one prompt per line.",
        ),
    ],
)
def test_what_cannot_be_extracted_is_refused(comfyui, graph, change, message):
    prompt = graph(**change)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_error"
    assert outcome.error[0] == "3"
    assert outcome.error[1].startswith(message)
