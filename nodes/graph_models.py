"""What a workflow can do to a MODEL, CLIP or VAE besides changing its weights. A checkpoint file
holds weights and metadata, so some of it goes into the metadata, and the rest is named.

ComfyUI's objects are read by their attributes, all of which its own nodes set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ..trainer.families.clip_skip import CLIP_SKIP_KEY, LAST_LAYER
from ..trainer.families.constants import Constants
from ..trainer.families.prediction import ZERO_SNR_FLAG
from ..trainer.noise import DiscreteNoise

SAMPLING = "model_sampling"
PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v"}
"""The names of ComfyUI's classes for what a model predicts, and their names in metadata."""
HARMLESS = {SAMPLING, "manual_cast_dtype", "disable_cfg1_optimization"}
"""Changes that are handled elsewhere, or that come with another one."""
LEFT_OUT = (
    "Left out of the checkpoint, because a file of weights cannot hold it: {}. It changes how "
    "ComfyUI draws, but not what is trained."
)


def usable_vae(vae: Any) -> Any:
    """The VAE. None if it has no weights, as that of a checkpoint file without a VAE."""
    return vae if getattr(vae, "first_stage_model", None) is not None else None


def metadata(model: Any, clip: Any, vae: Any) -> dict[str, str]:
    """The metadata of a checkpoint with these models: the layer of CLIP Set Last Layer, and what
    the model predicts if that is not epsilon. Raises ValueError if a change affects training but
    can be held neither by weights nor by metadata."""
    for kind, patcher in (("MODEL", model), ("CLIP", clip.patcher), ("VAE", _patcher_of(vae))):
        if patcher and (names := sorted(_hidden_weights(patcher))):
            raise ValueError(
                f"This {kind} has {', '.join(names)}, which changes its weights only while it "
                f"runs, so no checkpoint can hold the change. Connect the {kind} from before that "
                "node, or use Load LoRA, which changes the weights themselves."
            )
    if getattr(_patcher_of(vae), "patches", None):
        raise ValueError(
            "This VAE has patches, which ComfyUI does not save. Connect the VAE from Load VAE or "
            "Load Checkpoint."
        )
    found, (prediction, zero_snr) = {}, _prediction(model)
    if prediction != "epsilon" or SAMPLING in model.object_patches:
        found["modelspec.prediction_type"] = prediction
    if zero_snr:
        found[ZERO_SNR_FLAG] = str(True)
    clip_skip = _clip_skip(clip)
    if clip_skip is not None:
        found[CLIP_SKIP_KEY] = str(clip_skip)
    return found


def left_out(model: Any, clip: Any) -> list[str]:
    """The names of the changes that are left out of a checkpoint because they affect only how
    ComfyUI draws, such as "FreeU"."""
    found = set(_names(clip.tokenizer_options))
    for patcher in (model, clip.patcher):
        for changes in (
            patcher.object_patches, patcher.model_options, patcher.wrappers, patcher.callbacks,
            dict.fromkeys(patcher.additional_models, 0),
        ):  # fmt: skip
            found.update(_names(changes))
    return sorted(found)


def _clip_skip(clip: Any) -> int | None:
    """The layer that the CLIP uses, counted from the last one, which is 1. None: the model's usual
    one."""
    encoders = clip.cond_stage_model
    # Stable Diffusion 1 and 2 name their only text encoder. XL's both use the same layer.
    inner = getattr(encoders, getattr(encoders, "clip", "clip_l"), None)
    num_layers = getattr(inner, "num_layers", 12)
    _, usual, *_ = getattr(inner, "options_default", (None, None))
    layer = clip.layer_idx
    if layer is None or layer == (usual or -LAST_LAYER):
        return None
    if not isinstance(layer, int) or layer >= num_layers:
        raise ValueError(
            f"This CLIP uses the layers {layer!r}, but a model is trained with one layer. Choose "
            "it with CLIP Set Last Layer."
        )
    if layer < -num_layers:
        return None  # as ComfyUI does
    return -layer if layer < 0 else num_layers - layer


def _prediction(model: Any) -> tuple[str, bool]:
    """What the model predicts, as metadata call it, and whether with zero terminal SNR."""
    sampling = model.get_model_object(SAMPLING)
    bases = [base.__name__ for base in type(sampling).__bases__]
    found = [PREDICTIONS[name] for name in bases if name in PREDICTIONS]
    has_zsnr = getattr(sampling, "zsnr", False)
    if SAMPLING not in model.object_patches and not has_zsnr:
        return (found[0] if found else "epsilon"), False
    can_be_trained = found and not (has_zsnr and found[0] == "epsilon")
    is_discrete = "ModelSamplingDiscrete" in bases
    if not (can_be_trained and is_discrete and _is_usual(sampling, zero_snr=has_zsnr)):
        what = ", ".join([*bases, *(["zsnr"] if has_zsnr else [])])
        raise ValueError(
            f"This MODEL has another model sampling ({what}) than Stable Diffusion, which predicts "
            "epsilon or v with its usual noise, or v with zsnr, so it cannot be trained. Connect "
            "the MODEL from before the node that changes it, such as ModelSamplingDiscrete."
        )
    return found[0], has_zsnr


def _is_usual(sampling: Any, *, zero_snr: bool) -> bool:
    """Whether the noise levels are those of Stable Diffusion. The last one of zero SNR, which would
    be infinite, is not compared."""
    usual = Constants()
    process = DiscreteNoise.scaled_linear(
        usual.beta_start, usual.beta_end, has_zero_terminal_snr=zero_snr
    )
    kept = process.alphas_cumprod.double().cpu()
    levels = sampling.sigmas.double().cpu()
    if levels.shape != kept.shape:
        return False
    end = -1 if zero_snr else None
    return torch.allclose(levels[:end], ((1 - kept) / kept).sqrt()[:end], rtol=1e-2)


def _hidden_weights(patcher: Any) -> Iterator[str]:
    """What changes the weights of a model at each step, and not the weights that are saved."""
    for key in patcher.injections:
        yield "a LoRA in bypass mode" if key == "bypass_lora" else f"the injection '{key}'"
    if patcher.hook_patches or patcher.forced_hooks:
        yield "hooks"
    if patcher.weight_wrapper_patches:
        yield "functions around its weights"
    for key in patcher.object_patches:
        if key.startswith("diffusion_model"):
            yield f"another '{key}'"


def _patcher_of(vae: Any) -> Any:
    return getattr(vae, "patcher", None)


def _names(changes: Any, key: str = "") -> Iterator[str]:
    """Names for all changes in nested dicts and lists: the function's or class's that a node put
    there, which usually is the node's, otherwise the key."""
    if isinstance(changes, Mapping):
        for name, value in changes.items():
            if name not in HARMLESS:
                yield from _names(value, str(name))
    elif isinstance(changes, (list, tuple)):
        for value in changes:
            yield from _names(value, key)
    elif callable(changes):
        source = getattr(changes, "__qualname__", type(changes).__qualname__)
        first = source.split(".")[0]
        yield key if first == "ModelPatcher" or not first.isidentifier() else first
    else:
        yield key
