"""The routes through which pages show and change folders of photos, of a real ComfyUI."""

from __future__ import annotations

import io
import json
import os
import random
import secrets
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image

from tests.trainer.data.test_formats import heif
from trainer.toy import world
from trainer.toy.drawing import draw

pytestmark = pytest.mark.xdist_group("comfyui")

PHOTOS = "/dreambooth/photos"
POSTS = ("add", "changed", "caption", "remove", "restore")
EVERYTHING = {"names": ["a.png"], "name": "a.png", "text": "a cup"}
"""What each route needs besides the folder."""


@pytest.fixture
def folder(comfyui):
    """A folder of photos that no other test uses, and its name in the menu."""
    path = comfyui.base / "input" / f"set-{secrets.token_hex(4)}"
    draw_photos(path, "a.png", "b.png")
    return path


def draw_photos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        scene = world.pose(world.SUBJECT, random.Random(name), "cup")
        draw(scene).save(folder / name)


def label(folder: Path) -> str:
    return f"input/{folder.name}"


def view(comfyui, folder: str, prompt: str = "") -> dict:
    return comfyui.get(f"{PHOTOS}?{urlencode({'folder': folder, 'prompt': prompt})}")


def get(comfyui, path: str, **query: str) -> tuple[int, bytes]:
    return answer_to(urllib.request.Request(f"http://{comfyui.address}{path}?{urlencode(query)}"))


def answer_to(request: urllib.request.Request) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def upload(comfyui, content: bytes, name: str, subfolder: str) -> str:
    """Upload a file as the page does, and return its name."""
    mark = secrets.token_hex(8)
    parts = [
        f'--{mark}\r\nContent-Disposition: form-data; name="subfolder"\r\n\r\n{subfolder}\r\n',
        f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n',
    ]
    body = "".join(parts).encode() + content + f"\r\n--{mark}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={mark}"}
    request = urllib.request.Request(f"http://{comfyui.address}/upload/image", body, headers)
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["name"]


def files(root: Path) -> dict[str, bytes | None]:
    """Every file and folder with what it contains. Links are not followed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


# --- What is shown ------------------------------------------------------------------------------


def test_photos_are_listed_with_size_and_caption(comfyui, folder):
    (folder / "b.txt").write_text("a photo of sks cup at night\n")
    found = view(comfyui, label(folder))
    assert (found["folder"], found["is_editable"]) == (label(folder), True)
    assert (found["fault"], found["notes"], found["removed"]) == ("", [], [])
    first, second = found["photos"]
    assert (first["name"], first["width"], first["height"]) == ("a.png", 64, 64)
    assert (first["caption"], first["caption_file"]) == ("", None)
    assert (second["caption"], second["caption_file"]) == ("a photo of sks cup at night", "b.txt")


def test_what_cannot_be_used_is_named_before_any_run(comfyui, folder, toy_graph):
    """In the words of the run."""
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (folder / "c.heic").write_bytes(heif(b"heic"))
    (folder / "a.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (folder / "b.txt").write_text("on the beach")
    found = view(comfyui, label(folder), "a photo of sks cup")
    photos = {photo["name"]: photo for photo in found["photos"]}
    assert photos["a.png"]["fault"] == (
        f"The caption '{folder / 'a.txt'}' is not UTF-8 text. Save it as UTF-8."
    )
    assert photos["broken.jpg"]["fault"].startswith("'broken.jpg' cannot be read as an image: ")
    assert photos["broken.jpg"]["width"] is None
    if not photos["c.heic"]["is_used"]:  # without pillow-heif
        assert photos["c.heic"]["fault"].startswith("'c.heic' is an image in the format HEIC")
    graph = toy_graph(label(folder))
    assert comfyui.run(graph).error[1] == photos["a.png"]["fault"]
    (folder / "a.txt").unlink()
    outcome = comfyui.run(graph)
    assert outcome.error[1] == photos["broken.jpg"]["fault"]
    assert [note for note in found["notes"] if note in outcome.warnings] == found["notes"]
    assert any("contain none of the words" in note for note in found["notes"])


def test_warnings_of_reading_a_photo_are_shown_once_and_again(comfyui, folder):
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    frames[0].save(folder / "c.gif", save_all=True, append_images=frames[1:])
    for _ in range(2):
        assert view(comfyui, label(folder))["notes"] == [
            "'c.gif' has several frames. Only the first is used. Save the others as separate files "
            "to train on them too."
        ]


def test_the_embedded_photos_are_shown_and_not_changed(comfyui):
    name = "toy cup photos (embedded)"
    found = view(comfyui, name)
    assert (len(found["photos"]), found["is_editable"]) == (6, False)
    for act in ("caption", "remove", "restore"):
        content = {"folder": name, **EVERYTHING, "name": "cup_0.png"}
        status, answer = comfyui.post(f"{PHOTOS}/{act}", content)
        assert (status, answer["error"]) == (
            400,
            f"The photos of '{name}' are only changed in their folder, not here.",
        )


def test_thumbnails_are_small_jpegs_and_follow_the_file(comfyui, folder):
    query = {"folder": label(folder), "name": "a.png"}
    Image.new("RGB", (1000, 500), "red").save(folder / "a.png")
    status, content = get(comfyui, f"{PHOTOS}/thumbnail", **query)
    with Image.open(io.BytesIO(content)) as image:
        assert (status, image.format, image.size) == (200, "JPEG", (192, 96))
        assert image.getpixel((0, 0))[0] > 200
    Image.new("RGB", (500, 500), "blue").save(folder / "a.png")
    with Image.open(io.BytesIO(get(comfyui, f"{PHOTOS}/thumbnail", **query)[1])) as image:
        assert image.getpixel((0, 0))[2] > 200


def test_a_thumbnail_of_a_broken_photo_says_why_there_is_none(comfyui, folder):
    (folder / "a.png").write_bytes(b"")
    status, content = get(comfyui, f"{PHOTOS}/thumbnail", folder=label(folder), name="a.png")
    assert (status, json.loads(content)["error"]) == (
        400,
        "'a.png' cannot be read as an image: the file is empty. Replace it, or remove it.",
    )


# --- Adding -------------------------------------------------------------------------------------


def test_new_photos_make_a_folder_that_the_menu_lists(comfyui):
    wish = f"My dog: {secrets.token_hex(4)}"
    status, plan = comfyui.post(
        f"{PHOTOS}/add", {"folder": wish, "names": ["a.png", "NUL.jpg", "film.mp4", "../b.png"]}
    )
    subfolder = wish.replace(":", "-")
    assert (status, plan) == (
        200,
        {
            "folder": f"input/{subfolder}",
            "subfolder": subfolder,
            "names": ["a.png", "_NUL.jpg", None, "b.png"],
        },
    )
    content = io.BytesIO()
    Image.new("RGB", (64, 64)).save(content, "PNG")
    assert upload(comfyui, content.getvalue(), "a.png", subfolder) == "a.png"
    assert [photo["name"] for photo in view(comfyui, plan["folder"])["photos"]] == ["a.png"]
    node = comfyui.get("/object_info/DreamBoothLoadInstanceImages")["DreamBoothLoadInstanceImages"]
    assert plan["folder"] in str(node["input"]["required"]["folder"])


def test_a_folder_that_exists_in_another_case_is_the_same(comfyui, folder):
    _, plan = comfyui.post(f"{PHOTOS}/add", {"folder": folder.name.upper(), "names": ["A.PNG"]})
    assert (plan["folder"], plan["names"]) == (label(folder), ["A (1).PNG"])


def test_another_photo_of_the_same_name_is_kept_beside_it(comfyui, folder):
    before = (folder / "a.png").read_bytes()
    other = (folder / "b.png").read_bytes()
    _, plan = comfyui.post(f"{PHOTOS}/add", {"folder": folder.name, "names": ["a.png"]})
    assert upload(comfyui, other, plan["names"][0], plan["subfolder"]) == "a (1).png"
    assert upload(comfyui, before, plan["names"][0], plan["subfolder"]) == "a.png"
    assert (folder / "a.png").read_bytes() == before
    assert sorted(files(folder)) == ["a (1).png", "a.png", "b.png"]


def test_nothing_is_made_for_what_is_not_a_photo(comfyui):
    name = f"none-{secrets.token_hex(4)}"
    _, plan = comfyui.post(f"{PHOTOS}/add", {"folder": name, "names": ["film.mp4"]})
    assert plan["names"] == [None]
    assert not (comfyui.base / "input" / name).exists()


def test_a_file_is_no_folder_for_photos(comfyui):
    name = f"file-{secrets.token_hex(4)}"
    (comfyui.base / "input" / name).write_text("")
    status, answer = comfyui.post(f"{PHOTOS}/add", {"folder": name, "names": ["a.png"]})
    assert (status, answer["error"]) == (
        400,
        f"'{name}' is a file in ComfyUI's input folder. Choose another name.",
    )


# --- Changing -----------------------------------------------------------------------------------


def test_a_caption_is_written_beside_the_photo(comfyui, folder):
    content = {"folder": label(folder), "name": "a.png", "text": "a sks 컵"}
    assert comfyui.post(f"{PHOTOS}/caption", content) == (200, {"folder": label(folder)})
    assert (folder / "a.txt").read_text("utf-8") == "a sks 컵\n"
    status, answer = comfyui.post(f"{PHOTOS}/caption", {**content, "text": "b", "replace": False})
    assert (status, answer["error"]) == (
        409,
        "'a.png' has another caption already, which is kept.",
    )
    assert view(comfyui, label(folder))["photos"][0]["caption"] == "a sks 컵"


def test_a_photo_is_removed_and_brought_back(comfyui, folder):
    content = {"folder": label(folder), "name": "a.png"}
    assert comfyui.post(f"{PHOTOS}/remove", content)[0] == 200
    found = view(comfyui, label(folder))
    assert [photo["name"] for photo in found["photos"]] == ["b.png"]
    assert (found["removed"], found["notes"]) == (["a.png"], [])
    assert comfyui.post(f"{PHOTOS}/remove", content) == (
        404,
        {"error": "There is no photo 'a.png' here any more."},
    )
    node = comfyui.get("/object_info/DreamBoothLoadInstanceImages")["DreamBoothLoadInstanceImages"]
    assert f"{label(folder)}/" not in str(node)
    assert comfyui.post(f"{PHOTOS}/restore", content)[0] == 200
    assert len(view(comfyui, label(folder))["photos"]) == 2


def test_every_change_is_announced_to_all_pages(comfyui, folder, toy_graph, new_seed):
    content = {"folder": label(folder), "name": "a.png", "text": "a cup"}

    def change(outcome):
        if outcome.steps and not done:
            for act in ("changed", "caption", "remove", "restore"):
                done.append(comfyui.post(f"{PHOTOS}/{act}", content)[0])
            comfyui.interrupt()

    done: list[int] = []
    graph = toy_graph(seed=new_seed, name="announced", **{"preset.steps": 3000})
    outcome = comfyui.run(graph, on_message=change)
    heard = [data for kind, data in outcome.events if kind == "dreambooth.photos"]
    assert (done, heard) == ([200] * 4, [{"folder": label(folder)}] * 4)


# --- What is refused ----------------------------------------------------------------------------


LEADING_OUT = [
    "", ".", "..", "/", "../outside", "input", "input/", "input/.", "input/..", "input/../outside",
    "input/a/../../outside", "input//etc", "/etc", "//server/share", "C:\\outside", "C:outside",
    "input/C:/outside", "..\\outside", "input/..\\outside", "\\\\server\\share", "input/con",
    "input/a\0b", "input/.removed", "datasets/../input", "models/checkpoints", "output", "~",
    "input/%2e%2e/outside", "input/" + "x" * 5000, "input/nothing",
]  # fmt: skip
"""Names of folders that are not a folder of photos."""


@pytest.mark.parametrize("name", LEADING_OUT)
def test_no_route_leaves_the_folders_of_photos(comfyui, name):
    draw_photos(comfyui.base / "outside", "a.png")
    (comfyui.base / "outside" / ".removed").mkdir(exist_ok=True)
    draw_photos(comfyui.base / "outside" / ".removed", "c.png")
    before = files(comfyui.base)
    for path in (PHOTOS, f"{PHOTOS}/thumbnail"):
        status, answer = get(comfyui, path, folder=name, name="a.png")
        assert (status in (400, 404), b"error" in answer) == (True, True), path
    for act in ("changed", "caption", "remove", "restore"):
        status, answer = comfyui.post(f"{PHOTOS}/{act}", {"folder": name, **EVERYTHING})
        assert (status in (400, 404), "error" in answer) == (True, True), act
    after = files(comfyui.base)
    assert {path for path in after if after[path] != before.get(path)} <= {"log.txt"}
    assert after.keys() == before.keys()


@pytest.mark.parametrize("name", LEADING_OUT)
def test_new_photos_never_land_outside_the_input_folder(comfyui, name):
    before = {path for path in files(comfyui.base) if not path.startswith("input/")}
    status, answer = comfyui.post(f"{PHOTOS}/add", {"folder": name, "names": ["../../a.png"]})
    if status == 200:
        assert answer["names"] == ["a.png"]
        made = comfyui.base / "input" / answer["subfolder"]
        assert made.is_dir()
        assert Path(os.path.realpath(made)).is_relative_to(comfyui.base / "input")
        assert len(made.name.encode()) <= 200
    else:
        assert (status, "error" in answer) == (400, True)
    after = {path for path in files(comfyui.base) if not path.startswith("input/")}
    assert after == before


@pytest.mark.parametrize(
    "name",
    ["../outside/a.png", "..", "", "/etc/passwd", "a.png/../../x", "..\\a.png", "a.png\0", "b.txt",
     ".removed/c.png", "x" * 5000 + ".png"],
)  # fmt: skip
def test_no_route_leaves_the_folder_by_a_photo_s_name(comfyui, folder, name):
    draw_photos(comfyui.base / "outside", "a.png")
    (folder / "b.txt").write_text("a caption")
    before = files(comfyui.base)
    content = {"folder": label(folder), "name": name, "text": "overwritten"}
    status, _ = get(comfyui, f"{PHOTOS}/thumbnail", folder=label(folder), name=name)
    assert status == 404
    for act in ("caption", "remove", "restore"):
        assert comfyui.post(f"{PHOTOS}/{act}", content)[0] == 404, act
    after = files(comfyui.base)
    assert {path for path in after if after[path] != before.get(path)} <= {"log.txt"}


@pytest.mark.posix
def test_a_link_that_leads_out_is_refused_by_every_route(comfyui):
    outside = comfyui.base / "linked"
    draw_photos(outside, "a.png")
    link = comfyui.base / "input" / f"link-{secrets.token_hex(4)}"
    os.symlink(outside, link)
    before = files(outside)
    for path in (PHOTOS, f"{PHOTOS}/thumbnail"):
        assert get(comfyui, path, folder=label(link), name="a.png")[0] == 400, path
    for act in POSTS:
        name = link.name if act == "add" else label(link)
        status, answer = comfyui.post(f"{PHOTOS}/{act}", {"folder": name, **EVERYTHING})
        assert (status, answer["error"]) == (
            400,
            f"'{link.name}' is a link that leads out of {comfyui.base / 'input'}. Copy the files "
            "there instead.",
        ), act
    below = {"folder": f"{link.name}/new", "names": ["a.png"]}
    assert comfyui.post(f"{PHOTOS}/add", below)[0] == 400
    assert files(outside) == before


@pytest.mark.parametrize("act", POSTS)
def test_changes_are_posted_as_json(comfyui, folder, act):
    """A page of another site can send forms and plain texts without being asked."""
    url = f"http://{comfyui.address}{PHOTOS}/{act}"
    content = json.dumps({"folder": label(folder), **EVERYTHING}).encode()
    before = files(folder)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        request = urllib.request.Request(url, content, {"Content-Type": kind})
        assert answer_to(request)[0] == 415
    assert get(comfyui, f"{PHOTOS}/{act}", folder=label(folder))[0] in (404, 405)
    headers = {"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}
    assert answer_to(urllib.request.Request(url, content, headers))[0] == 403
    assert files(folder) == before


@pytest.mark.parametrize("act", POSTS)
@pytest.mark.parametrize(
    "content", [None, [], "input", {}, {"folder": 3}, {"folder": ["input"], "names": [1]}]
)
def test_other_contents_are_refused(comfyui, act, content):
    status, answer = comfyui.post(f"{PHOTOS}/{act}", content)
    assert (status, "error" in answer) == (400, True)
