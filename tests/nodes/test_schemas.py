"""The nodes' definitions as ComfyUI sends them to its page."""

import dataclasses
from pathlib import Path
from typing import get_args

import pytest

from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TEMPLATES
from trainer.optimization.lr_schedules import LR_SCHEDULES
from trainer.optimization.optimizers import OPTIMIZERS
from trainer.runs.run import OnExisting
from trainer.sampling.schedulers import SCHEDULERS
from trainer.settings.config import (
    OptimizerConfig,
    OutputConfig,
    Precision,
    PreviewConfig,
    SamplingConfig,
    ScoringConfig,
)
from trainer.settings.presets import INVERSION_PRESETS, LORA_PRESETS, PRESETS

pytestmark = pytest.mark.xdist_group("comfyui")

IDS = {
    "DreamBoothLoadBaseModel": "Load Base Model",
    "DreamBoothModelFromGraph": "Model from Graph",
    "DreamBoothApplyLoRA": "Apply LoRA",
    "DreamBoothLoadInstanceImages": "Load Instance Images",
    "DreamBoothGenerateClassPriors": "Generate Class Priors",
    "DreamBoothTrain": "DreamBooth Train",
    "DreamBoothTextualInversionTrain": "Textual Inversion Train",
    "DreamBoothOptimizerSettings": "Optimizer Settings",
    "DreamBoothPreviewSettings": "Preview Settings",
    "DreamBoothSampleWithScheduler": "Sample with Scheduler",
    "DreamBoothCompareSettings": "Compare Settings",
    "DreamBoothScoreImages": "Score Images",
    "DreamBoothUseTrainedModel": "Use Trained Model",
    "DreamBoothExtractLoRA": "Extract LoRA",
    "DreamBoothSaveCheckpoint": "Save as Checkpoint",
}


@pytest.fixture(scope="module")
def nodes(comfyui):
    every = comfyui.get("/object_info")
    return {name: info for name, info in every.items() if name.startswith("DreamBooth")}


def inputs(info):
    """Kind and options of each input by name; below a dynamic menu, by "menu.option.name"."""
    found = {}
    for group in ("required", "optional"):
        for name, (kind, options) in info["input"].get(group, {}).items():
            found[name] = (kind, options)
            if kind == "COMFY_DYNAMICCOMBO_V3":
                for option in options["options"]:
                    nested = inputs({"input": option["inputs"]})
                    for inner, value in nested.items():
                        found[f"{name}.{option['key']}.{inner}"] = value
    return found


def menu(nodes, node, name):
    return inputs(nodes[f"DreamBooth{node}"])[name][1]["options"]


def test_node_ids_and_names(nodes):
    assert {name: info["display_name"] for name, info in nodes.items()} == IDS


@pytest.mark.parametrize("node", IDS)
def test_every_node_has_search_words_and_explains_itself(nodes, node):
    info = nodes[node]
    assert info["category"] == "DreamBooth"
    assert info["essentials_category"] == "DreamBooth"
    assert "dreambooth" in info["search_aliases"] or node == "DreamBoothTrain"
    assert len(info["search_aliases"]) >= 4
    assert info["description"].endswith(".")
    for name, (_, options) in inputs(info).items():
        assert options["tooltip"].endswith("."), name
    assert len(info["output_tooltips"]) == len(info["output"])
    assert all(tooltip.endswith(".") for tooltip in info["output_tooltips"])


def test_inputs_and_outputs_have_different_ids(nodes):
    for info in nodes.values():
        names = [name.replace(" ", "_") for name in info["output_name"]]
        shared = set(inputs(info)) & set(names)
        # Old ComfyUI requires different ids, which are not shown; display names may be the same.
        assert shared <= {"model_source"}


def test_menus_list_the_trainers_tables(nodes):
    assert menu(nodes, "OptimizerSettings", "optimizer") == list(OPTIMIZERS)
    assert menu(nodes, "OptimizerSettings", "lr_schedule") == list(LR_SCHEDULES)
    assert menu(nodes, "OptimizerSettings", "precision") == list(get_args(Precision))
    assert menu(nodes, "PreviewSettings", "scheduler") == list(SCHEDULERS)
    assert menu(nodes, "SampleWithScheduler", "scheduler") == list(SCHEDULERS)
    for name in ("second_scheduler", "third_scheduler"):
        assert menu(nodes, "SampleWithScheduler", name) == ["none", *SCHEDULERS]
        assert menu(nodes, "CompareSettings", name) == ["none", *SCHEDULERS]
    made = "images.made by the model.scheduler"
    assert menu(nodes, "GenerateClassPriors", made) == list(SCHEDULERS)
    assert menu(nodes, "Train", "on_existing") == list(get_args(OnExisting))
    for_lora = [f"LoRA {name}" for name in LORA_PRESETS]
    keys = [option["key"] for option in menu(nodes, "Train", "preset")]
    assert keys == ["auto", *PRESETS, *for_lora]
    keys = [option["key"] for option in menu(nodes, "Train", "trains")]
    assert keys == [
        "full weights",
        "LoRA",
        "full weights and a LoRA",
    ]  # The page chooses the first.
    node = "TextualInversionTrain"
    assert menu(nodes, node, "on_existing") == list(get_args(OnExisting))
    keys = [option["key"] for option in menu(nodes, node, "preset")]
    assert keys == ["auto", *INVERSION_PRESETS]
    assert menu(nodes, node, "preset.toy.templates") == list(TEMPLATES)


def test_defaults_are_those_of_the_dataclasses(nodes):
    optimizer = inputs(nodes["DreamBoothOptimizerSettings"])
    for name in ("weight_decay", "max_grad_norm", "lr_schedule", "warmup_steps", "num_restarts"):
        assert optimizer[name][1]["default"] == getattr(OptimizerConfig(), name)
    assert optimizer["optimizer"][1]["default"] == OptimizerConfig().name
    preview = inputs(nodes["DreamBoothPreviewSettings"])
    assert preview["every"][1]["default"] == PreviewConfig().every
    assert preview["steps"][1]["default"] == PreviewConfig().sampling.steps
    for name, value in dataclasses.asdict(ScoringConfig()).items():
        assert preview[name][1]["default"] == value
    # Last, because saved workflows store values by position.
    optional = list(nodes["DreamBoothPreviewSettings"]["input"]["optional"])
    assert optional[-6:] == ["judge", *dataclasses.asdict(ScoringConfig())]
    sampling = inputs(nodes["DreamBoothSampleWithScheduler"])
    for name in (
        "scheduler", "steps", "guidance_scale", "seed", "negative_prompt", "batch_size",
    ):  # fmt: skip
        assert sampling[name][1]["default"] == getattr(SamplingConfig(), name)
    assert inputs(nodes["DreamBoothTrain"])["name"][1]["default"] == OutputConfig().name
    assert inputs(nodes["DreamBoothCompareSettings"])["steps"][1]["default"] == str(
        SamplingConfig().steps
    )
    for node in ("DreamBoothTrain", "DreamBoothTextualInversionTrain"):
        shown = inputs(nodes[node])
        assert shown["keep_saves"][1]["default"] == OutputConfig().keep
        assert shown["vram"][1]["default"] == "auto"


def test_new_inputs_and_outputs_are_the_last_ones(nodes):
    """Saved workflows store values, and links to outputs, by position."""
    last = {name: list(info["input"]["optional"])[-3:] for name, info in nodes.items()
            if "optional" in info["input"]}  # fmt: skip
    assert last["DreamBoothTrain"] == ["keep_saves", "vram", "trains"]
    assert last["DreamBoothTextualInversionTrain"][-2:] == ["vram", "directional"]
    assert last["DreamBoothSampleWithScheduler"][-2:] == ["precision", "lora_strength"]
    assert last["DreamBoothCompareSettings"][-2:] == ["judge", "lora_strengths"]
    assert last["DreamBoothUseTrainedModel"] == ["lora_strength"]
    of_training = ["DREAMBOOTH_SAVES", "DREAMBOOTH_MODEL"]
    assert nodes["DreamBoothTextualInversionTrain"]["output"][-2:] == of_training
    assert nodes["DreamBoothTrain"]["output"][-3:] == [*of_training, "STRING"]


def test_the_values_of_a_lora_are_those_of_the_method(nodes):
    shown = {
        name.removeprefix("trains.LoRA."): options["default"]
        for name, (_, options) in inputs(nodes["DreamBoothTrain"]).items()
        if name.startswith("trains.LoRA.")
    }
    method = dataclasses.asdict(LoRA())
    assert shown == {
        "continue_lora": False,
        **{name: method[name] or 0 for name in shown if isinstance(shown[name], int | float)
           and name != "continue_lora"},
        "layers": "", "placeholder": "", "initializer": "",
    }  # fmt: skip
    assert list(shown) == [
        "rank", "alpha", "conv_rank", "continue_lora", "dropout", "min_rank", "dora", "layers",
        "placeholder", "initializer", "num_vectors", "embedding_learning_rate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("object", (2e-6, 400, 4, False, 0.0)),
        ("face", (1e-6, 1200, 2, True, 1.0)),
        ("textual inversion + DreamBooth", (1e-6, 500, 4, False, 0.0)),
        ("toy", (2e-4, 300, 4, True, 1.0)),
        ("LoRA object", (1e-4, 400, 4, False, 0.0)),
        ("LoRA face", (1e-4, 1200, 2, True, 1.0)),
        ("LoRA toy", (1e-3, 300, 4, True, 1.0)),
    ],
)
def test_a_preset_fills_in_its_values(nodes, preset, values):
    names = ("learning_rate", "steps", "batch_size", "train_text_encoder", "prior_weight")
    shown = inputs(nodes["DreamBoothTrain"])
    assert tuple(shown[f"preset.{preset}.{name}"][1]["default"] for name in names) == values
    # Only faces have another rate for the text encoder, and it is shown.
    rate = shown.get(f"preset.{preset}.text_encoder_learning_rate")
    assert (rate and rate[1]["default"]) == (5e-5 if preset == "LoRA face" else None)


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("textual inversion", (5e-4, 2000, 4, "object")),
        ("toy", (3e-3, 300, 4, "captions")),
    ],
)
def test_a_preset_of_textual_inversion_fills_in_its_values(nodes, preset, values):
    names = ("learning_rate", "steps", "batch_size", "templates")
    shown = inputs(nodes["DreamBoothTextualInversionTrain"])
    assert tuple(shown[f"preset.{preset}.{name}"][1]["default"] for name in names) == values


@pytest.mark.parametrize("node", ["DreamBoothTrain", "DreamBoothTextualInversionTrain"])
def test_a_new_training_node_starts_with_auto_and_without_the_values_of_a_preset(nodes, node):
    first = inputs(nodes[node])["preset"][1]["options"][0]  # the page chooses the first
    assert first["key"] == "auto"
    assert not any(first["inputs"].values())


def test_learning_rates_keep_all_their_digits(nodes):
    for node, name in (
        ("DreamBoothTrain", "preset.object.learning_rate"),
        ("DreamBoothTextualInversionTrain", "preset.toy.learning_rate"),
        ("DreamBoothOptimizerSettings", "text_encoder_learning_rate"),
    ):
        options = inputs(nodes[node])[name][1]
        assert (options["step"], options["round"]) == (1e-7, 1e-10)
        assert round(1.23e-6 / options["round"]) * options["round"] == pytest.approx(1.23e-6)


def test_seeds_are_fixed(nodes):
    control = {
        (node, name): options.get("control_after_generate")
        for node, info in nodes.items()
        for name, (_, options) in inputs(info).items()
        if name.split(".")[-1] == "seed"
    }
    # In a dynamic menu the page adds no control that could change a seed.
    assert control == {
        ("DreamBoothTrain", "seed"): "fixed",
        ("DreamBoothTextualInversionTrain", "seed"): "fixed",
        ("DreamBoothPreviewSettings", "seed"): "fixed",
        ("DreamBoothSampleWithScheduler", "seed"): "fixed",
        ("DreamBoothCompareSettings", "seed"): "fixed",
        ("DreamBoothGenerateClassPriors", "images.made by the model.seed"): None,
    }


def test_train_shows_about_ten_widgets(nodes):
    shown = inputs(nodes["DreamBoothTrain"])
    sockets = {name for name, (kind, _) in shown.items() if kind.startswith("DREAMBOOTH_")}
    further = {name for name, (_, options) in shown.items() if options.get("advanced")}
    plain = set(shown) - sockets - further
    chosen = [name for name in plain if "." not in name or ".object." in name]
    assert len(chosen) == 12
    assert nodes["DreamBoothTrain"]["output_node"]


def test_menus_list_the_embedded_files_first(nodes):
    assert menu(nodes, "LoadBaseModel", "checkpoint")[0] == "toy (embedded)"
    assert menu(nodes, "LoadInstanceImages", "folder")[0] == "toy cup photos (embedded)"
    assert menu(nodes, "CompareSettings", "judge")[:2] == ["none", "toy (embedded)"]
    assert menu(nodes, "ScoreImages", "judge")[0] == "toy (embedded)"


def test_new_folders_and_checkpoints_appear_without_a_restart(comfyui):
    (comfyui.base / "input" / "new dogs" / "small").mkdir(parents=True)
    (comfyui.base / "models" / "checkpoints" / "new.safetensors").write_bytes(b"")
    info = comfyui.get("/object_info/DreamBoothLoadInstanceImages")
    folders = menu(info, "LoadInstanceImages", "folder")
    assert {"input/new dogs", "input/new dogs/small"} <= set(folders)
    info = comfyui.get("/object_info/DreamBoothLoadBaseModel")
    assert "new.safetensors" in menu(info, "LoadBaseModel", "checkpoint")
    (comfyui.base / "models" / "checkpoints" / "new.safetensors").unlink()


def test_the_pack_is_loaded(comfyui):
    log = Path(comfyui.log).read_text()
    lines = [line for line in log.splitlines() if line.endswith("custom_nodes/ComfyUI-DreamBooth")]
    assert lines
    assert [line for line in lines if "IMPORT FAILED" in line] == []
