"""What a checkpoint's U-Net predicts, the noise (epsilon) or the velocity (v), and whether it was
trained with zero terminal SNR: every sign of it in the file. The setting `prediction_type` decides
instead where the file is wrong or silent."""

from __future__ import annotations

import re

from ..settings.config import PredictionType
from .files import CheckpointFile

_TEXTS = (
    "modelspec.prediction_type",
    "modelspec.predict_key",
    "ss_prediction_type",
    "prediction_type",
)
"""Metadata keys whose value names the prediction. ComfyUI writes `modelspec.predict_key`."""
_FLAGS = ("ss_v_parameterization", "ss_v_pred", "v_pred", "v_parameterization")
"""Metadata keys of kohya's programs and others that say True for v, False for epsilon."""
_SPELLINGS = {
    **dict.fromkeys(("epsilon", "eps", "epsilonprediction", "epsprediction", "noise"), False),
    **dict.fromkeys(("v", "vprediction", "vpred", "velocity", "vparameterization"), True),
}
"""Whether it is v, for each spelling in lower case and without - and _."""
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no", "none", "")
ZERO_SNR_FLAG = "ss_zero_terminal_snr"
"""A metadata key of kohya's programs that says True for zero terminal SNR."""
METADATA_KEYS = (*_TEXTS, *_FLAGS, ZERO_SNR_FLAG)
V_TENSOR, ZERO_SNR_TENSOR = "v_pred", "ztsnr"
"""Empty tensors that say v and zero terminal SNR, whatever their values. ComfyUI reads them in
Stable Diffusion XL's checkpoints."""
_EDM = ("edm_vpred.sigma_max", "edm_mean")
"""Tensors that say that a model was trained with the noise levels of EDM, as ComfyUI reads them."""
V_ZERO_SNR: PredictionType = "v-zsnr"


def is_v_prediction(
    source: CheckpointFile, prediction_type: PredictionType = "auto"
) -> bool | None:
    """Whether the U-Net predicts v. None: neither the setting nor the file says.

    Raises ValueError if the file says something unknown or both, unless the setting decides, and
    if the file needs another noise schedule.
    """
    _require_noise_schedule(source)
    if prediction_type != "auto":
        return prediction_type != "epsilon"
    signs = _signs(source)
    if len(set(signs.values())) < 2:
        return next(iter(signs.values()), None)
    of_epsilon, of_v = (
        ", ".join(where for where, is_v in signs.items() if is_v is wanted)
        for wanted in (False, True)
    )
    raise ValueError(
        f"'{source.name}' says both that it predicts epsilon ({of_epsilon}) and that it "
        f"predicts v ({of_v}). Set prediction_type to epsilon, which almost all models predict, or "
        "to v."
    )


def has_zero_terminal_snr(
    source: CheckpointFile, prediction_type: PredictionType, *, is_v: bool
) -> bool:
    """Whether the noise has zero terminal SNR. Raises ValueError if the setting or the file says so
    of a model that predicts epsilon: from noise alone, the noise says nothing of an image."""
    if prediction_type != "auto":
        return prediction_type == V_ZERO_SNR
    flag = source.metadata.get(ZERO_SNR_FLAG, "").strip().lower() in _TRUE
    sign = ZERO_SNR_FLAG if flag else ZERO_SNR_TENSOR
    if not flag and ZERO_SNR_TENSOR not in source.shapes:
        return False
    if not is_v:
        raise ValueError(
            f"'{source.name}' says that it was trained with zero terminal SNR ({sign}), which only "
            f"models that predict v can be, but not that it predicts v. Set prediction_type to "
            f"{V_ZERO_SNR}, or to epsilon to ignore what the file says."
        )
    return True


def mark(source: CheckpointFile, *, is_v: bool, zero_snr: bool, adds: bool) -> None:
    """Make the tensors of trained checkpoints say this. `adds`: whether ComfyUI reads them of this
    family, so that missing ones are added."""
    for tensor, is_so in ((V_TENSOR, is_v), (ZERO_SNR_TENSOR, zero_snr)):
        if tensor in source.shapes and not is_so:
            source.leave_out([tensor])
        elif adds and is_so and tensor not in source.shapes:
            source.add_marker(tensor)


def _signs(source: CheckpointFile) -> dict[str, bool]:
    """Whether the file says v, by the place where it says so."""
    signs = {key: _read(source, key) for key in _TEXTS if source.metadata.get(key)}
    for key in _FLAGS:
        value = source.metadata.get(key, "").strip().lower()
        if value in _TRUE:
            signs[key] = True
        elif value in _FALSE and key in source.metadata:
            signs[key] = False
        elif value:
            signs[key] = _read(source, key)
    if V_TENSOR in source.shapes:
        signs[f"the tensor {V_TENSOR}"] = True
    return signs


def _read(source: CheckpointFile, key: str) -> bool:
    value = source.metadata[key]
    spelling = re.sub(r"[-_\s]", "", value).lower()
    if spelling not in _SPELLINGS:
        raise ValueError(
            f"The metadata of '{source.name}' gives '{value}' for {key}, but only epsilon and "
            "v are supported. If the model predicts one of them, set prediction_type to it; "
            "otherwise choose another checkpoint."
        )
    return _SPELLINGS[spelling]


def _require_noise_schedule(source: CheckpointFile) -> None:
    if found := [key for key in _EDM if key in source.shapes]:
        raise ValueError(
            f"'{source.name}' was trained with the noise levels of EDM ({found[0]}), which are not "
            "supported. Choose a checkpoint that was trained with Stable Diffusion's own."
        )
