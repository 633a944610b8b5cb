"""The prediction type of a checkpoint inside ComfyUI, whose own loader assumes epsilon."""

import json
from pathlib import Path

import pytest

from benchmarks.startup import STARTUP, last_line

pytestmark = pytest.mark.xdist_group("comfyui")

SCRIPT = (
    STARTUP
    + """
import asyncio, json
from pathlib import Path
import comfy.model_sampling as sampling
models = sys.modules["/pack.nodes.models"]
found = {}
for setting in ("auto", "epsilon", "v"):
    source = models.open_source(
        Path(PATH), options=models.ModelOptions(prediction_type=setting)
    )
    model = models.UseTrainedModel.execute(model_source=[source]).args[0]
    used = model.get_model_object("model_sampling")
    found[setting] = isinstance(used, sampling.V_PREDICTION)
print(json.dumps(found))
"""
)


def test_use_trained_model_sets_comfyuis_prediction_type(
    needs_comfyui: None, sd15_checkpoint: Path, tmp_path: Path
) -> None:
    script = SCRIPT.replace("PATH", repr(str(sd15_checkpoint)))
    assert json.loads(last_line(script, tmp_path)) == {"auto": False, "epsilon": False, "v": True}
