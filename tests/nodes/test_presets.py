"""The preset `auto` inside a real ComfyUI: nodes from the search box train with their defaults."""

import os

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

TRAINING = ["DreamBoothTrain", "DreamBoothTextualInversionTrain"]
FITS = "preset: {}, which fits this model ({})"
SCHEDULE = "learning_rate {}, steps {}, batch_size 4"
OBJECT = f"{SCHEDULE.format('2e-6', 400)}, train_text_encoder off, prior_weight 0"
TOY = f"{SCHEDULE.format(0.0002, 300)}, train_text_encoder on, prior_weight "
TOY_INVERSION = f"{SCHEDULE.format(0.003, 300)}, templates "


@pytest.fixture
def defaults(new_seed):
    """Builds a workflow of new nodes: only what has no default has a value, the menu of presets,
    and the seed, so that no other test's run is found."""

    def build(node, checkpoint="toy (embedded)"):
        links = {"model_source": ["1", 0], "dataset": ["2", 0]}
        return {
            "1": {"class_type": "DreamBoothLoadBaseModel", "inputs": {"checkpoint": checkpoint}},
            "2": {
                "class_type": "DreamBoothLoadInstanceImages",
                "inputs": {"folder": "toy cup photos (embedded)"},
            },
            "3": {"class_type": node, "inputs": {**links, "preset": "auto", "seed": new_seed}},
        }

    return build


@pytest.fixture
def finish(comfyui):
    """Runs a workflow, and finishes its training after the first step."""

    def run(prompt):
        asked = []

        def ask(outcome):
            if outcome.steps and not asked:
                asked.append(comfyui.post("/dreambooth/finish", {"node": "3"}))

        outcome = comfyui.run(prompt, on_message=ask)
        assert outcome.end == "execution_success", outcome.error
        return outcome

    return run


def announced(outcome):
    """Return the different lines about the preset."""
    lines = [line for text in outcome.texts for line in text.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("preset: ")))


@pytest.mark.parametrize(
    ("node", "shown", "values"),
    [
        (TRAINING[0], TOY + "0", {"preset.prior_weight": 0.0}),
        # The default prompt has no placeholder, so that it cannot be the caption.
        (TRAINING[1], TOY_INVERSION + "object", {"preset.templates": "object"}),
    ],
)
def test_new_nodes_train_the_toy_with_the_values_of_its_preset(
    comfyui, defaults, finish, node, shown, values
):
    prompt = defaults(node)
    outcome = finish(prompt)
    assert outcome.steps
    line = FITS.format("toy", shown)
    assert announced(outcome) == [line]
    assert f"{line}\n" in comfyui.log.read_text()
    # The run that these values describe is the same one.
    prompt["3"]["inputs"] |= {"preset": "toy", **values}
    outcome = comfyui.run(prompt)
    assert (outcome.end, outcome.steps) == ("execution_success", [])
    assert announced(outcome) == []


def test_auto_uses_class_images_that_are_connected(defaults, finish, priors_node):
    prompt = defaults(TRAINING[0])
    prompt["4"] = priors_node(2)
    prompt["3"]["inputs"]["class_dataset"] = ["4", 0]
    assert announced(finish(prompt)) == [FITS.format("toy", TOY + "1")]


def test_auto_takes_the_preset_for_loras(comfyui, defaults, finish):
    prompt = defaults(TRAINING[0])
    prompt["3"]["inputs"]["trains"] = "LoRA"
    values = f"{SCHEDULE.format(0.001, 300)}, train_text_encoder on, prior_weight 0"
    assert announced(finish(prompt)) == [FITS.format("LoRA toy", values)]


def test_auto_takes_a_prompt_with_the_placeholder_as_caption(defaults, finish):
    prompt = defaults(TRAINING[1])
    prompt["2"]["inputs"]["instance_prompt"] = "a photo of <my-subject>"
    assert announced(finish(prompt)) == [FITS.format("toy", TOY_INVERSION + "captions")]


def test_auto_fits_a_full_size_model(comfyui, defaults, sd15_checkpoint):
    path = comfyui.base / "models" / "checkpoints" / "full size.safetensors"
    os.link(sd15_checkpoint, path)

    def stop(outcome):
        if announced(outcome):
            comfyui.interrupt()

    outcome = comfyui.run(defaults(TRAINING[0], path.name), on_message=stop)
    assert announced(outcome) == [FITS.format("object", OBJECT)]
    path.unlink()


@pytest.mark.parametrize(
    ("node", "names"),
    [
        (
            TRAINING[0],
            "auto, object, face, textual inversion + DreamBooth, object XL, face XL, toy, "
            "LoRA object, LoRA face, LoRA object XL, LoRA face XL, LoRA toy",
        ),
        (TRAINING[1], "auto, textual inversion, toy"),
    ],
)
def test_an_unknown_preset_does_not_mean_auto(comfyui, defaults, node, names):
    """ComfyUI leaves out a choice that the menu does not have."""
    prompt = defaults(node)
    prompt["3"]["inputs"]["preset"] = "dog"
    assert comfyui.run(prompt).error == ("3", f"preset must be one of {names}, got None.")
