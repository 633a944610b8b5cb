"""Compared with files that the library safetensors writes and reads."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.storage.tensor_file import DTYPES, TensorToWrite, write

TENSORS = {
    f"{dtype}.{name}".removeprefix("torch."): torch.linspace(-3, 9, numel).to(dtype).view(shape)
    for dtype in reversed(DTYPES.values())
    for name, numel, shape in [("b", 12, (3, 4)), ("a", 1, ()), ("ü", 0, (0, 5))]
}


def written(path, tensors, metadata):
    write(path, {name: TensorToWrite.of(each) for name, each in tensors.items()}, metadata)
    return path


def test_files_are_those_of_the_library_byte_for_byte(tmp_path):
    ours = written(tmp_path / "ours.safetensors", TENSORS, {"format": "pt"})
    save_file(TENSORS, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert ours.read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()


def test_views_and_transposed_tensors_are_written_by_value(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"transposed": whole.t(), "rows": whole[1:], "column": whole[:, 1]}
    found = load_file(written(tmp_path / "a.safetensors", tensors, {}))
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_one_tensor_at_a_time_is_computed(tmp_path):
    alive = set()

    class Watched(torch.Tensor):
        def __del__(self):
            alive.discard(id(self))

    def compute():
        assert not alive
        made = torch.zeros(3).as_subclass(Watched)
        alive.add(id(made))
        return made

    tensors = {str(n): TensorToWrite((3,), torch.float32, compute) for n in range(4)}
    write(tmp_path / "a.safetensors", tensors, {})
    assert len(load_file(tmp_path / "a.safetensors")) == 4


def test_metadata_that_is_no_text_is_refused(tmp_path):
    with pytest.raises(TypeError, match="Metadata must be strings, got {'not': 5}."):
        written(tmp_path / "a.safetensors", {"a": torch.zeros(3)}, {"not": 5})
