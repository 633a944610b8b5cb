"""Files that are found by what they were made from."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from trainer.conversion import written

KEY = "dreambooth.x"


def save(path, metadata):
    save_file({"a": torch.zeros(1)}, path, metadata=metadata)
    return path


def test_a_file_is_found_by_its_facts(tmp_path):
    facts = {"base": "abc", "rule": "rank 2"}
    path = save(tmp_path / "one.safetensors", written.as_metadata(KEY, facts, {"kept": 0.5}))
    save(tmp_path / "two.safetensors", written.as_metadata(KEY, {**facts, "rule": "x"}, {}))
    assert written.find(tmp_path, KEY, facts) == (path, {"kept": 0.5})
    assert written.find(tmp_path, "dreambooth.y", facts) is None
    assert written.find(tmp_path, KEY, {"base": "abc"}) is None
    assert written.find(tmp_path / "nowhere", KEY, facts) is None


def test_the_newest_one_is_found(tmp_path):
    metadata = written.as_metadata(KEY, {}, {})
    paths = [save(tmp_path / f"{name}.safetensors", metadata) for name in "abc"]
    for age, path in zip((2, 0, 1), paths, strict=True):
        os.utime(path, (1000 - age, 1000 - age))
    assert written.find(tmp_path, KEY, {}) == (paths[1], {})


@pytest.mark.parametrize(
    "text", ["", "no JSON", "[" * 9999, "[]", "{}", json.dumps({"from": {}}),
             json.dumps({"from": {}, "result": 1})],
)  # fmt: skip
def test_files_with_other_metadata_are_passed_over(tmp_path, text):
    save(tmp_path / "other.safetensors", {KEY: text})
    (tmp_path / "damaged.safetensors").write_bytes(b"damaged")
    (tmp_path / "folder.safetensors").mkdir()
    assert written.find(tmp_path, KEY, {}) is None


def test_metadata_have_the_date(tmp_path):
    date = written.as_metadata(KEY, {}, {})["modelspec.date"]
    assert date[4] == date[7] == "-"
    assert date.endswith("+00:00")
