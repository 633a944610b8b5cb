"""What a checkpoint's U-Net predicts, the noise (epsilon) or the velocity (v): every sign of it in
the file. The setting `prediction_type` decides instead where the file is wrong or silent."""

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
METADATA_KEYS = (*_TEXTS, *_FLAGS)
TENSOR = "v_pred"
"""An empty tensor that says v, whatever its value. ComfyUI writes it."""
_OTHER_SCHEDULES = {
    "ztsnr": "a noise schedule with zero terminal SNR",
    "edm_vpred.sigma_max": "the noise levels of EDM",
    "edm_mean": "the noise levels of EDM",
}
"""Tensors that say that a model was trained with another noise schedule, as ComfyUI reads them."""
_ZERO_SNR_FLAG = "ss_zero_terminal_snr"


def is_v_prediction(
    source: CheckpointFile, prediction_type: PredictionType = "auto"
) -> bool | None:
    """Whether the U-Net predicts v. None: neither the setting nor the file says.

    Raises ValueError if the file says something unknown or both, unless the setting decides, and
    if the file needs another noise schedule.
    """
    _require_noise_schedule(source)
    if prediction_type != "auto":
        return prediction_type == "v"
    signs = _signs(source)
    if len(set(signs.values())) < 2:
        return next(iter(signs.values()), None)
    of_epsilon, of_v = (
        ", ".join(where for where, is_v in signs.items() if is_v is wanted)
        for wanted in (False, True)
    )
    raise ValueError(
        f"'{source.name}' says both that it predicts epsilon ({of_epsilon}) and that it "
        f"predicts v ({of_v}). Set prediction_type to epsilon, which almost all Stable Diffusion 1 "
        "models predict, or to v."
    )


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
    if TENSOR in source.shapes:
        signs[f"the tensor {TENSOR}"] = True
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
    found = [f"{what} ({key})" for key, what in _OTHER_SCHEDULES.items() if key in source.shapes]
    if source.metadata.get(_ZERO_SNR_FLAG, "").strip().lower() in _TRUE:
        found.append(f"{_OTHER_SCHEDULES['ztsnr']} ({_ZERO_SNR_FLAG})")
    if found:
        raise ValueError(
            f"'{source.name}' was trained with {found[0]}, and only Stable Diffusion 1's own "
            "noise schedule is supported. Choose a checkpoint that was trained with that one."
        )
