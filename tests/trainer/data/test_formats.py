"""The format of a file by its content, and what can be read."""

import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image, features

from trainer.data import formats
from trainer.data.formats import format_of, how_to_read, is_readable, pillow_formats

WRITTEN = ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]


def heif(*brands: bytes) -> bytes:
    """The beginning of a file in a format of the HEIF family."""
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", len(content) + 4) + content + bytes(40)


@pytest.mark.parametrize("name", [*WRITTEN, "AVIF"])
def test_what_pillow_writes_is_recognised_whatever_its_name(tmp_path, name):
    if name == "AVIF" and not features.check_module("avif"):
        pytest.skip("this Pillow was built without AVIF")
    path = tmp_path / "photo"
    Image.new("RGB", (9, 9)).save(path, format=name)
    assert format_of(path) == name
    assert format_of(path.rename(tmp_path / "photo.heic")) == name
    assert is_readable(name)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (heif(b"heic", b"mif1"), "HEIC"),
        (heif(b"mif1", b"heic"), "HEIC"),
        (heif(b"mif1", b"avif"), "AVIF"),
        (heif(b"avif", b"mif1"), "AVIF"),
        (heif(b"crx "), "camera raw"),
        (heif(b"isom", b"mp42"), ""),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"II*\0\x10\0\0\0CR\x02\0", "camera raw"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw"),
        (b"8BPS\0\1", "Photoshop"),
        (b"BMW in front of a house, in the rain", ""),
        (struct.pack("<Q", 0x4D42) + b'{"__metadata__":{}}', ""),
        (b"", ""),
    ],
)
def test_the_first_bytes_decide(tmp_path, content, name):
    path = tmp_path / "photo"
    path.write_bytes(content)
    assert format_of(path) == name
    if name:
        assert format_of(path.rename(tmp_path / "photo.jpg")) == name


@pytest.mark.parametrize(("ending", "name"), [(".NEF", "camera raw"), (".dng", "camera raw"),
                                              (".tif", "TIFF")])  # fmt: skip
def test_raw_photos_are_not_taken_for_the_tiff_files_that_they_also_are(tmp_path, ending, name):
    Image.new("RGB", (9, 9)).save(tmp_path / f"photo{ending}", format="TIFF")
    assert format_of(tmp_path / f"photo{ending}") == name


def test_formats_without_a_mark_are_known_by_their_extension(tmp_path):
    (tmp_path / "a.svg").write_text("<svg/>")
    (tmp_path / "b.HEIC").touch()
    (tmp_path / "c.Jpg").write_text("damaged")
    names = ("a.svg", "b.HEIC", "c.Jpg", "d.safetensors")
    assert [format_of(tmp_path / name) for name in names] == ["SVG", "HEIC", "JPEG", ""]


def test_heic_is_read_only_with_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it was not installed
    assert not is_readable("HEIC")
    assert pillow_formats("HEIC") == formats.FORMATS
    assert how_to_read("HEIC") == (
        f"To read such photos, run '\"{sys.executable}\" -m pip install pillow-heif', or convert "
        "them to JPEG."
    )
    registered = []
    package = SimpleNamespace(register_heif_opener=lambda: registered.append(True))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert is_readable("HEIC")
    assert pillow_formats("HEIC") == (*formats.FORMATS, "HEIF")
    assert registered
    assert pillow_formats("JPEG") == formats.FORMATS


def test_an_old_pillow_must_be_updated_for_avif(monkeypatch):
    monkeypatch.setattr(features, "modules", {})
    assert not is_readable("AVIF")
    assert pillow_formats("AVIF") == formats.FORMATS
    assert how_to_read("AVIF") == (
        f"To read such photos, run '\"{sys.executable}\" -m pip install --upgrade pillow' and "
        "restart, or convert them to JPEG."
    )


def test_other_formats_must_be_converted():
    assert how_to_read("JPEG XL") == "Convert such photos to JPEG or PNG."


def test_every_format_that_pillow_can_start_a_program_for_stays_out(tmp_path: Path):
    content = io.BytesIO()
    Image.new("RGB", (9, 9)).save(content, format="EPS")
    (tmp_path / "a.eps").write_bytes(content.getvalue())
    assert format_of(tmp_path / "a.eps") == ""
    assert "EPS" not in pillow_formats("")
