"""Names and folders of files: what is refused, and what becomes of subfolders and endings."""

import re
from pathlib import Path

import pytest

from trainer.settings.config import OutputConfig

REFUSALS = [
    (
        lambda: OutputConfig(name="a/../b"),
        "output.name must be a plain file name, got 'a/../b': it leads out of its folder.",
    ),
    (
        lambda: OutputConfig(name="dogs/"),
        "output.name must be a plain file name, got 'dogs/': it has nothing before or after a "
        "slash.",
    ),
    (
        lambda: OutputConfig(name="dogs/nul/b"),
        "output.name must be a plain file name, got 'dogs/nul/b': Windows reserves it for a "
        "device.",
    ),
    (
        lambda: OutputConfig(name="a%date: %"),
        "output.name must be a plain file name, got 'a ': names cannot contain \\ : * ? \" < > | "
        "or control characters, or begin or end with a space or a dot.",
    ),
    (
        lambda: OutputConfig(name=".safetensors"),
        "output.name must be a plain file name, got '': it leads out of its folder.",
    ),
    (
        lambda: OutputConfig(name="dog\n"),
        "output.name must be a plain file name, got 'dog\\n': names cannot contain \\ : * ? \" < "
        "> | or control characters, or begin or end with a space or a dot.",
    ),
    (
        lambda: OutputConfig(name="Aux"),
        "output.name must be a plain file name, got 'Aux': Windows reserves it for a device.",
    ),
    (
        lambda: OutputConfig(name="강" * 67),
        "output.name is 201 bytes long, but endings are added to it, so at most 200 are possible. "
        "Choose a shorter name.",
    ),
    (
        lambda: OutputConfig(folder=Path("caf\udce9")),
        "output.folder is not valid Unicode: 'caf\\udce9'. Write it in UTF-8, or rename it.",
    ),
    (
        lambda: OutputConfig(embedding_folder=Path("caf\udce9")),
        "output.embedding_folder is not valid Unicode: 'caf\\udce9'. Write it in UTF-8, or rename "
        "it.",
    ),
    (
        lambda: OutputConfig(keep=0),
        "output.keep must be 1 or more, got 0.",
    ),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refuses_impossible_names(make, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


@pytest.mark.parametrize("ending", [".safetensors", ".ckpt", ".pt", ".bin", ".SafeTensors.CKPT"])
def test_the_ending_of_a_file_is_left_out_of_its_name(ending):
    assert OutputConfig(name="dogs/my-dog v1.5" + ending).name == "dogs/my-dog v1.5"


def test_subfolders_in_a_name_move_to_the_folder():
    output = OutputConfig(folder=Path("out"), name="dogs/2024/my-dog", keep=7).in_subfolder()
    assert (output.folder, output.name, output.keep) == (Path("out/dogs/2024"), "my-dog", 7)
    assert output.in_subfolder() == output
