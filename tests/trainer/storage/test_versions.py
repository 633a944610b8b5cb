import torch
import transformers

from trainer.storage.versions import versions


def test_versions_are_those_installed():
    found = versions()
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
