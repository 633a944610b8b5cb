"""`python -m trainer inspect`."""

import logging

import numpy as np
import pytest
from PIL import Image

from tests.trainer.data.test_looks import photo
from trainer.__main__ import main
from trainer.cli.inspect_command import NOTHING


@pytest.fixture
def inspect(tmp_path, caplog):
    """Returns what is said and the exit code."""
    caplog.set_level(logging.INFO)

    def inspect(*flags: str) -> tuple[list[str], int]:
        caplog.clear()
        folders = [str(tmp_path / "photos"), "--folder", str(tmp_path / "out")]
        code = main(["inspect", *folders, "--resolution", "64", *flags])
        return caplog.messages, code

    return inspect


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        photo(number, size=(80, 80)).save(folder / f"{number}.png")
    return folder


def test_advice_and_a_contact_sheet(inspect, photos, tmp_path):
    before = sorted(photos.iterdir())
    said, code = inspect()
    assert (said, code) == ([NOTHING, f"Wrote {tmp_path / 'out' / 'contact sheet.png'}"], 0)
    with Image.open(photos / "0.png") as image:
        image.resize((60, 60)).save(photos / "3.jpg")
    (photos / "1.txt").write_text("a cat")
    before.extend([photos / "1.txt", photos / "3.jpg"])
    said, code = inspect("--prompt", "a sks dog")
    assert "1 of 1 captions contain none of the words sks, dog" in said[0]
    assert said[1].startswith("Smaller than the resolution 64 (1): 3.jpg.")
    assert said[2].startswith("Nearly the same photo (2): 0.png, 3.jpg.")
    assert said[3] == f"Wrote {tmp_path / 'out' / 'contact sheet_1.png'}"
    assert code == 0
    assert sorted(photos.iterdir()) == sorted(before)


def test_what_a_run_would_refuse_is_said_and_the_others_are_shown(inspect, photos, tmp_path):
    (photos / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.new("L", (80, 40), 255).save(photos / "2-mask.png")
    said, code = inspect()
    assert said[0].startswith("'1.png' cannot be read as an image")
    assert said[1].startswith("'2-mask.png' is taken for the mask of '2.png', but has another")
    assert said[-1].startswith("Wrote ")
    assert code == 0
    with Image.open(tmp_path / "out" / "contact sheet.png") as sheet:
        assert np.asarray(sheet).std() > 20


def test_a_folder_without_photos_is_an_error(inspect, tmp_path):
    (tmp_path / "photos").mkdir()
    said, code = inspect()
    assert said[-1].startswith("No images in")
    assert code == 1
