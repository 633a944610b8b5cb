import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.storage.png_files import save_png

IMAGE = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))


def test_the_image_and_its_texts_are_written(tmp_path):
    text = PngInfo()
    text.add_itxt("Description", "a 컵")
    save_png(tmp_path / "new" / "a.png", IMAGE, text)
    with Image.open(tmp_path / "new" / "a.png") as found:
        assert found.info["Description"] == "a 컵"
        assert (np.asarray(found) == np.asarray(IMAGE)).all()


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, disk_events, safely_written):
    save_png(tmp_path / "a.png", IMAGE)
    assert disk_events == safely_written(tmp_path / "a.png")


@pytest.mark.posix
def test_on_a_full_disk_the_old_image_stays_and_the_error_names_it(tmp_path, file_size_limit):
    path = tmp_path / "a.png"
    save_png(path, IMAGE)
    old = path.read_bytes()
    with pytest.raises(OSError) as caught, file_size_limit(20):
        save_png(path, IMAGE.rotate(90))
    assert str(caught.value) == f"[Errno 27] File too large: '{path}'"
    assert [each.name for each in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == old
