"""Apply LoRA and Use Trained Model with LoRAs, inside a real ComfyUI."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.nodes.drawing import draw, image_of, sampling
from trainer import toy

pytestmark = pytest.mark.xdist_group("comfyui")

LAYER = "text_model_encoder_layers_0_mlp_fc1"
WEIGHT = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"


def apply_lora(name, **inputs):
    node = {"model_source": ["1", 0], "lora": name, **inputs}
    return {"class_type": "DreamBoothApplyLoRA", "inputs": node}


@pytest.fixture
def trained(comfyui, lora_graph, new_seed, lora_files):
    """A LoRA of the toy model's U-Net and text encoder: the workflow that trained it, its name in
    the menu, and its file."""
    prompt = lora_graph(**{"preset.train_text_encoder": True})
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    (path,) = lora_files().values()
    return prompt, f"dreambooth/{path.name}", path


def test_a_file_changes_a_model_as_its_training_does(comfyui, trained):
    prompt, name, _ = trained
    prompt |= {"6": apply_lora(name), "7": apply_lora(name, strength=0.5)}
    _, images = draw(
        comfyui, prompt,
        trained=sampling(["3", 0]), applied=sampling(["6", 0]),
        half=sampling(["3", 0], lora_strength=0.5), applied_half=sampling(["7", 0]),
        halved_twice=sampling(["7", 0], lora_strength=0.5),
        quarter=sampling(["3", 0], lora_strength=0.25),
    )  # fmt: skip
    assert np.array_equal(images["applied"], images["trained"])
    assert np.array_equal(images["applied_half"], images["half"])
    assert np.array_equal(images["halved_twice"], images["quarter"])
    assert not np.array_equal(images["half"], images["trained"])


def test_full_weights_trained_on_top_contain_the_lora(comfyui, lora_graph, trained, new_seed):
    _, name, path = trained
    settings = {"trains": "full weights", "preset": "toy", "preset.steps": 1}
    prompt = lora_graph(model_source=["6", 0], name=f"baked-{new_seed}", **settings)
    prompt["6"] = apply_lora(name, strength=0.5)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    # The text encoder was not trained: its weights are the base model's and half of the change.
    folder = comfyui.base / "models" / "checkpoints" / "dreambooth"
    checkpoint = load_file(folder / f"baked-{new_seed}.safetensors")
    base, file = load_file(toy.MODEL), load_file(path)
    up, down = (file[f"lora_te_{LAYER}.lora_{side}.weight"].float() for side in ("up", "down"))
    expected = base[WEIGHT].float() + 0.5 * (up @ down)
    assert torch.allclose(checkpoint[WEIGHT].float(), expected, atol=1e-3)
    assert not torch.allclose(checkpoint[WEIGHT].float(), base[WEIGHT].float(), atol=1e-3)


def test_a_lora_from_a_file_is_trained_further(comfyui, lora_graph, trained, new_seed, lora_files):
    _, name, path = trained
    prompt = lora_graph(
        {"continue_lora": True}, model_source=["6", 0], name=f"on-lora-{new_seed}",
        **{"preset.steps": 1, "preset.train_text_encoder": True},
    )  # fmt: skip
    prompt["6"] = apply_lora(name, strength=0.5)
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    assert outcome.warnings[0] == (
        f"The strength 0.5 of '{path.name}' is not used: a LoRA is trained further at the "
        "strength 1."
    )
    further = load_file(lora_files()[f"on-lora-{new_seed}.safetensors"])
    assert further.keys() == load_file(path).keys()


def test_class_images_are_those_of_the_model_with_the_lora(comfyui, trained, priors_node, new_seed):
    _, name, _ = trained
    prompt = {"1": trained[0]["1"], "6": apply_lora(name)}
    folder = comfyui.base / "output" / "dreambooth" / "class_images"
    before = set(folder.glob("*"))
    for number, source in (("7", "1"), ("8", "6")):
        prompt[number] = priors_node(1, seed=new_seed)
        prompt[number]["inputs"]["model_source"] = [source, 0]
        inputs = {"images": [number, 1], "filename_prefix": f"class {number}"}
        prompt[f"save {number}"] = {"class_type": "SaveImage", "inputs": inputs}
    outcome = comfyui.run(prompt)
    assert outcome.end == "execution_success", outcome.error
    of_base, of_lora = (image_of(comfyui, outcome, f"save {number}") for number in "78")
    assert np.abs(of_base - of_lora).mean() > 0.5
    assert len(set(folder.glob("*")) - before) == 2


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"emb_params": [2, 8]},
            "'odd.safetensors' is a textual inversion embedding, not a LoRA. Choose a complete "
            "LoRA file.",
        ),
        (
            {
                "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": [999, 2],
                "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": [2, 999],
            },
            "'odd.safetensors' changes no layer of Stable Diffusion 1",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_once(comfyui, lora_graph, tensors, message):
    folder = comfyui.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    path = folder / "odd.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, path)
    prompt = {"1": lora_graph()["1"], "6": apply_lora(path.name), "7": sampling(["6", 0])}
    prompt["8"] = {
        "class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "odd"}
    }  # fmt: skip
    node, text = comfyui.run(prompt).error
    path.unlink()
    assert node == "6"
    assert text.startswith(message)


def saved_checkpoint(comfyui, prompt, name):
    """Run the workflow, whose node 9 ends in a MODEL, a CLIP and a VAE, and return the weights that
    ComfyUI saves of them."""
    inputs = {"model": ["9", 0], "clip": ["9", 1], "vae": ["8", 2], "filename_prefix": name}
    outcome = comfyui.run(prompt | {"10": {"class_type": "CheckpointSave", "inputs": inputs}})
    assert outcome.end == "execution_success", outcome.error
    (path,) = (comfyui.base / "output").glob(f"{name}*.safetensors")
    found = load_file(path)
    path.unlink()
    return found


def test_use_trained_model_patches_as_load_lora_does(
    comfyui,
    lora_graph,
    sd15_checkpoint,
    new_seed,
    lora_files,
):
    checkpoint = comfyui.base / "models" / "checkpoints" / "full width.safetensors"
    shutil.copy(sd15_checkpoint, checkpoint)
    prompt = lora_graph(**{
        "preset": "LoRA object", "preset.steps": 2, "preset.batch_size": 1,
        "preset.train_text_encoder": True,
    })  # fmt: skip
    prompt["1"]["inputs"]["checkpoint"] = checkpoint.name
    prompt["2"]["inputs"] |= {"resolution": 64, "allow_upscaling": True}
    used = {"model_source": ["3", 0], "lora_strength": 0.5}
    prompt["8"] = prompt["9"] = {"class_type": "DreamBoothUseTrainedModel", "inputs": used}
    since = len(comfyui.log.read_text())
    ours = saved_checkpoint(comfyui, prompt, "ours")
    name = f"dreambooth/lora-{new_seed}.safetensors"
    loader = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint.name}}
    strengths = {"strength_model": 0.5, "strength_clip": 0.5}
    inputs = {"model": ["8", 0], "clip": ["8", 1], "lora_name": name, **strengths}
    lora = {"class_type": "LoraLoader", "inputs": inputs}
    theirs = saved_checkpoint(comfyui, {"8": loader, "9": lora}, "theirs")
    assert ours.keys() == theirs.keys()
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    # All layers of the file changed their weights, and no others.
    base, file = load_file(checkpoint), load_file(lora_files()[name.split("/")[1]])
    changed = [key for key in theirs if key in base and not torch.equal(theirs[key], base[key])]
    assert len(changed) == sum(key.endswith("lora_up.weight") for key in file)
    assert "NOT LOADED" not in comfyui.log.read_text()[since:]
    checkpoint.unlink()
