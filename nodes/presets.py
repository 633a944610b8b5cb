"""The presets of the training nodes: their menu, and the values that a run takes from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comfy_api.latest import io

from ..trainer.families.sdxl import SDXL
from ..trainer.settings.config import TrainingConfig
from ..trainer.settings.presets import LORA_PRESETS, PRESETS
from . import folders, host
from .sockets import ModelSource
from .widgets import DEFAULTS, learning_rate_input, widget

AUTO = "auto"
"""The choice of the preset that fits the model. It shows no widgets for the values."""
TOY = "toy"
"""The preset for models as small as the embedded one, and for no others."""
FOR_LORA = "LoRA "
"""Begins the names of the presets for LoRA in the menu of DreamBooth Train."""
DREAMBOOTH_PRESETS = {**PRESETS, **{FOR_LORA + name: each for name, each in LORA_PRESETS.items()}}
"""Those of DreamBooth Train, by their names in the menu."""
Presets = Mapping[str, Mapping[str, Any]]
Inputs = Callable[[Mapping[str, Any]], list[io.Input]]
"""Returns the widgets below a preset, with its values."""


def preset_input(presets: Presets, inputs: Inputs, tooltip: str) -> io.Input:
    """A menu of presets and `AUTO`, which comes first because new nodes start with it."""
    options = [
        io.DynamicCombo.Option(AUTO, []),
        *(io.DynamicCombo.Option(name, inputs(values)) for name, values in presets.items()),
    ]
    return io.DynamicCombo.Input("preset", options=options, tooltip=tooltip, optional=True)


def preset_config(preset: Mapping[str, Any]) -> TrainingConfig:
    """The default settings with the values of a preset, except for those of its method."""
    return DEFAULTS.replace({key: value for key, value in preset.items() if key != "method"})


def schedule_inputs(config: TrainingConfig) -> list[io.Input]:
    """Learning rate, steps and batch size."""
    return [
        learning_rate_input(config.optimizer, "learning_rate"),
        widget(io.Int, config, "steps", min=1, max=1000000),
        widget(io.Int, config, "batch_size", min=1, max=256),
    ]


def fitting(source: ModelSource, full_size: str, presets: Presets) -> str:
    """The preset for a model: `full_size` or its variant for Stable Diffusion XL, or that of the
    toy."""
    if not source.is_full_size:
        return TOY
    for_xl = f"{full_size} XL"
    return for_xl if source.family is SDXL and for_xl in presets else full_size


def values(preset: Mapping[str, Any], inputs: Inputs, **others: Any) -> dict[str, Any]:
    """The values that the widgets below a preset have by default, with others for some."""
    return {**{each.id: each.default for each in inputs(preset)}, **others}


def announce(name: str, values: Mapping[str, Any]) -> None:
    """Show on the node, and in the log, which preset was chosen."""
    shown = ", ".join(f"{setting} {_shown(value)}" for setting, value in values.items())
    host.tell(f"preset: {name}, which fits this model ({shown})")


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}".replace("e-0", "e-") if isinstance(value, float) else str(value)


def check(name: str | None, presets: Presets, source: ModelSource) -> None:
    """Raises ValueError for a preset that does not exist or is not made for the model. The toy
    model's learning rates destroy a real model at once; a real model's have no effect on the toy.
    """
    if name is None or name not in presets:
        raise ValueError(f"preset must be one of {', '.join([AUTO, *presets])}, got {name!r}.")
    if (name.removeprefix(FOR_LORA) == TOY) == source.is_full_size:
        kind = "a full-size Stable Diffusion model" if source.is_full_size else "a small model"
        raise ValueError(
            f"preset is {name}, which is not made for "
            f"'{folders.checkpoint_name(source.path)}', {kind}. Choose {AUTO}, which fits the "
            "model."
        )


def check_target(name: str | None, *, is_lora: bool) -> None:
    """Raises ValueError for a preset of DreamBooth Train that is made for full weights if a LoRA is
    trained, or the reverse: their learning rates are far apart."""
    if name not in DREAMBOOTH_PRESETS or name.startswith(FOR_LORA) == is_lora:
        return
    if is_lora:
        other, set_to = FOR_LORA + name, "full weights"
        made_for, trained = "full weights", "a LoRA"
    else:
        other, set_to = name.removeprefix(FOR_LORA), "LoRA"
        made_for, trained = "a LoRA", "full weights"
    names = " or ".join([AUTO, *({other} & DREAMBOOTH_PRESETS.keys())])
    raise ValueError(
        f"preset is {name}, whose learning rate is made for {made_for}, but trains is set to train "
        f"{trained}. Choose the preset {names}, or set trains to {set_to}."
    )
