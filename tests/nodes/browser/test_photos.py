"""Photos on their node, in a browser: shown, added, described and removed. And class images."""

import hashlib
import json
import secrets

import pytest
from safetensors import safe_open

from tests.nodes.browser.conftest import PHOTOS, TRAIN, toy_workflow
from tests.nodes.browser.dropping import (
    confirm,
    drop,
    names_in,
    panel_of,
    photos_panel,
    place_of,
)
from tests.trainer.data.test_formats import heif

pytestmark = pytest.mark.xdist_group("comfyui")

CLASS_IMAGES = 4
"""The id of Generate Class Priors in the template."""


def widget(tab, name, node=PHOTOS):
    return tab.page.evaluate(
        "([id, name]) => app.rootGraph.getNodeById(id).widgets.find(w => w.name == name).value",
        [node, name],
    )


def choose(tab, folder):
    tab.page.evaluate(
        "([id, value]) => { const widget = app.rootGraph.getNodeById(id).widgets[0];"
        " widget.value = value; widget.callback?.(value) }",
        [PHOTOS, folder],
    )
    return panel_of(tab, folder)


def number_of_nodes(tab):
    return tab.page.evaluate("app.rootGraph.nodes.length")


def without_class_images(workflow):
    """The toy workflow as it trains on photos alone."""
    train = next(node for node in workflow["nodes"] if node["id"] == TRAIN)
    train["widgets_values"][5] = 0.0
    (socket,) = [each for each in train["inputs"] if each["name"] == "class_dataset"]
    workflow["links"] = [link for link in workflow["links"] if link[0] != socket["link"]]
    for node in workflow["nodes"]:
        for output in node["outputs"]:
            output["links"] = [n for n in output["links"] or [] if n != socket["link"]]
    socket["link"] = None
    return workflow


# --- Adding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spot", ["title", "panel"])
def test_dropped_photos_are_trained_on(tab, comfyui, taken, spot):
    (taken / "more").mkdir()
    (taken / "more" / "cup 4.png").write_bytes((taken / "cup 0.png").read_bytes())
    tab.load(without_class_images(toy_workflow(steps=3)))
    before = number_of_nodes(tab)
    x, y = place_of(tab, PHOTOS)
    if spot == "panel":
        box = photos_panel(tab).bounding_box()
        x, y = box["x"] + 20, box["y"] + 20
    drop(tab, [taken], x, y)
    assert confirm(tab) == taken.name
    folder = f"input/{taken.name.replace(':', '-')}"
    panel = panel_of(tab, folder)
    assert panel.locator(".status").text_content() == "4 photos"
    assert names_in(panel) == [f"cup {number}.png" for number in range(4)]
    left_out = "Folders inside it were left out: more. Drop them too to add their photos."
    panel.locator(".notes li", has_text=left_out).wait_for()
    captions = panel.get_by_role("textbox").evaluate_all("all => all.map(each => each.value)")
    assert captions == ["", "a photo of sks cup on the beach", "", ""]
    hint = panel.get_by_label("Caption of cup 0.png").get_attribute("placeholder")
    assert hint == "No caption file: “a photo of sks cup”"
    panel.locator("img").evaluate_all("all => Promise.all(all.map(each => each.decode()))")
    assert widget(tab, "folder") == folder
    assert number_of_nodes(tab) == before
    assert sorted(path.name for path in (comfyui.base / folder).iterdir()) == [
        "cup 0.png", "cup 1.png", "cup 1.txt", "cup 2.png", "cup 3.png",
    ]  # fmt: skip
    tab.run()
    tab.wait_for_state("finished")
    assert tab.page.evaluate("app.rootGraph.serialize()")["nodes"]


def test_chosen_files_are_added_to_the_folder_and_nothing_is_overwritten(tab, comfyui, taken):
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    field = photos_panel(tab).locator("input[type=file]:not([webkitdirectory])")
    field.set_input_files([taken / "cup 0.png", taken / "cup 1.png", taken / "cup 1.txt"])
    name = f"set-{secrets.token_hex(3)}"
    assert confirm(tab, name) == name
    panel = panel_of(tab, f"input/{name}")
    first = (comfyui.base / "input" / name / "cup 0.png").read_bytes()
    (taken / "cup 1.txt").write_text("another text")
    (taken / "cup 0.png").write_bytes((taken / "cup 2.png").read_bytes())
    (taken / "film.mp4").write_bytes(b"film")
    files = ["cup 0.png", "cup 1.png", "cup 1.txt", "film.mp4"]
    field.set_input_files([taken / file for file in files])
    assert confirm(tab) == name
    panel.locator(".status", has_text="3 photos").wait_for()
    assert names_in(panel) == ["cup 0 (1).png", "cup 0.png", "cup 1.png"]
    assert panel.locator(".notes li").all_text_contents() == [
        "Left out, because they are not photos: film.mp4.",
        "Added under another name, because the name was taken or not allowed: cup 0.png as cup 0 "
        "(1).png.",
        "'cup 1.txt' was not added: 'cup 1.png' has another caption already, which is kept.",
    ]
    assert (comfyui.base / "input" / name / "cup 0.png").read_bytes() == first
    assert (comfyui.base / "input" / name / "cup 1.txt").read_text() == (
        "a photo of sks cup on the beach\n"
    )


def test_a_chosen_folder_is_added_without_the_folders_inside_it(tab, taken):
    (taken / "more").mkdir()
    (taken / "cup 3.png").rename(taken / "more" / "cup 3.png")
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    photos_panel(tab).locator("input[webkitdirectory]").set_input_files(taken)
    assert confirm(tab) == taken.name
    panel = panel_of(tab, f"input/{taken.name.replace(':', '-')}")
    assert names_in(panel) == ["cup 0.png", "cup 1.png", "cup 2.png"]
    assert panel.locator(".notes li").all_text_contents() == [
        "Folders inside it were left out: more. Drop them too to add their photos."
    ]


def test_a_name_that_leads_out_is_refused_and_nothing_is_written(tab, comfyui, taken):
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    before = sorted(comfyui.base.rglob("cup 0.png"))
    field = photos_panel(tab).locator("input[type=file]").first
    for name in ("../outside", "/etc/outside"):
        field.set_input_files([taken / "cup 0.png"])
        confirm(tab, name)
        photos_panel(tab).locator(".notes li", has_text="cannot be used as a name").wait_for()
    assert sorted(comfyui.base.rglob("cup 0.png")) == before
    assert widget(tab, "folder") == "toy cup photos (embedded)"


def test_a_drop_beside_the_node_is_left_to_comfyui(tab, taken):
    tab.load(toy_workflow())
    before = number_of_nodes(tab)
    x, y = place_of(tab, PHOTOS)
    drop(tab, [taken / "cup 0.png"], x - 200, y)
    tab.page.wait_for_function("count => app.rootGraph.nodes.length > count", arg=before)
    assert tab.page.get_by_role("dialog").count() == 0


# --- Changing -----------------------------------------------------------------------------------


@pytest.fixture
def stored(comfyui, taken):
    """The photos in ComfyUI's input folder, and the folder's name in the menu."""
    name = f"cup-{secrets.token_hex(3)}"
    target = comfyui.base / "input" / name
    target.mkdir()
    for file in taken.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def test_a_caption_is_written_and_used_by_the_run(tab, comfyui, stored):
    workflow = without_class_images(toy_workflow(steps=3))
    (photos,) = [node for node in workflow["nodes"] if node["id"] == PHOTOS]
    photos["widgets_values"][0] = f"input/{stored.name}"
    tab.load(workflow)
    place_of(tab, PHOTOS)
    panel = panel_of(tab, f"input/{stored.name}")
    field = panel.get_by_label("Caption of cup 0.png")
    field.fill("a zebra of sks kind")
    field.press("Enter")
    panel.get_by_role("status").filter(has_text="Caption of cup 0.png saved.").wait_for(
        state="attached"
    )
    assert (stored / "cup 0.txt").read_text("utf-8") == "a zebra of sks kind\n"
    tab.run()
    tab.wait_for_state("finished")
    view = comfyui.get("/dreambooth/live")["views"][-1]
    with safe_open(comfyui.base / "models" / "checkpoints" / view["file"], "pt") as file:
        photos = str(file.metadata())
    assert hashlib.sha256(b"a zebra of sks kind").hexdigest() in photos
    tab.reload()
    panel = panel_of(tab, f"input/{stored.name}")
    assert panel.get_by_label("Caption of cup 0.png").input_value() == "a zebra of sks kind"


def test_a_photo_is_removed_and_brought_back_in_every_tab(open_tab, stored):
    first, second = open_tab(), open_tab()
    for tab in (first, second):
        tab.load(toy_workflow())
        place_of(tab, PHOTOS)
    panels = [choose(tab, f"input/{stored.name}") for tab in (first, second)]
    panels[0].get_by_role("button", name="Remove cup 1.png").click()
    for panel in panels:
        panel.locator(".status", has_text="3 photos").wait_for(state="attached")
        assert "cup 1.png" not in names_in(panel)
    assert not (stored / "cup 1.png").exists()
    assert not (stored / "cup 1.txt").exists()
    panels[1].get_by_role("button", name="Bring back").click()
    for panel in panels:
        panel.locator(".status", has_text="4 photos").wait_for(state="attached")
        field = panel.get_by_label("Caption of cup 1.png")
        assert field.input_value() == "a photo of sks cup on the beach"


def test_what_cannot_be_read_is_named_at_once(tab, stored):
    (stored / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photo")
    (stored / "IMG_1.heic").write_bytes(heif(b"heic"))
    (stored / "cup 0.txt").write_bytes("café".encode("latin-1"))
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    panel = choose(tab, f"input/{stored.name}")
    assert panel.locator(".status").text_content() == "6 photos, 3 cannot be used"
    faults = panel.locator(".faults li").all_text_contents()
    assert len(faults) == 2
    assert faults[0].startswith("'broken.jpg' cannot be read as an image: ")
    assert faults[1] == (
        f"The caption '{stored / 'cup 0.txt'}' is not UTF-8 text. Save it as UTF-8."
    )
    notes = panel.locator(".notes li").all_text_contents()
    assert any("the format HEIC cannot be read (1): IMG_1.heic" in note for note in notes)
    marked = panel.locator(".photos li", has=tab.page.locator(".fault:not([hidden])"))
    assert marked.locator("b").all_text_contents() == ["broken.jpg", "cup 0.png", "IMG_1.heic"]
    panel.get_by_role("button", name="Remove broken.jpg").click()
    panel.locator(".status", has_text="5 photos, 2 cannot be used").wait_for()


def test_files_that_were_changed_elsewhere_are_seen_when_the_page_is_used_again(tab, stored):
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    panel = choose(tab, f"input/{stored.name}")
    (stored / "cup 3.png").unlink()
    tab.page.evaluate("window.dispatchEvent(new Event('focus'))")
    panel.locator(".status", has_text="3 photos").wait_for()


def test_added_photos_are_seen_in_every_tab_and_what_is_typed_stays(open_tab, stored, taken):
    first, second = open_tab(), open_tab()
    for tab in (first, second):
        tab.load(toy_workflow())
        place_of(tab, PHOTOS)
    panels = [choose(tab, f"input/{stored.name}") for tab in (first, second)]
    field = panels[1].get_by_label("Caption of cup 0.png")
    field.press_sequentially("half a sent")
    (taken / "cup 0.png").rename(taken / "cup 9.png")
    panels[0].locator("input[type=file]").first.set_input_files(taken / "cup 9.png")
    confirm(first)
    panels[1].locator(".status", has_text="5 photos").wait_for()
    assert field.input_value() == "half a sent"


def test_many_photos_are_shown_when_asked_for(tab, stored):
    small = (stored / "cup 0.png").read_bytes()
    for number in range(4, 62):
        (stored / f"cup {number}.png").write_bytes(small)
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    panel = choose(tab, f"input/{stored.name}")
    assert panel.locator(".status").text_content() == "62 photos"
    assert len(names_in(panel)) == 60
    panel.get_by_role("button", name="Show all 62").click()
    assert len(names_in(panel)) == 62


def test_warnings_of_a_run_are_on_the_photos_until_the_next_run(tab):
    tab.load(toy_workflow())
    place_of(tab, PHOTOS)
    notes = photos_panel(tab).locator(".notes li")
    photos_panel(tab).locator(".photos li").first.wait_for()
    before = notes.all_text_contents()
    send = "([name, detail]) => { comfyAPI.api.api.dispatchCustomEvent(name, detail) }"
    text = "Reading 6/6\nWarning: two photos are the same\nWarning: &lt;my-dog&gt; &amp; co"
    tab.page.evaluate(send, ["progress_text", {"nodeId": str(PHOTOS), "text": text}])
    assert notes.all_text_contents() == [*before, "two photos are the same", "<my-dog> & co"]
    tab.page.evaluate(send, ["progress_text", {"nodeId": str(TRAIN), "text": "Warning: not here"}])
    assert len(notes.all_text_contents()) == len(before) + 2
    tab.page.evaluate(send, ["execution_start", {}])
    assert notes.all_text_contents() == before


def test_a_folder_that_does_not_exist_says_how_to_make_it(tab):
    workflow = toy_workflow()
    (photos,) = [node for node in workflow["nodes"] if node["id"] == PHOTOS]
    photos["widgets_values"][0] = "input/my-dog"
    tab.load(workflow)
    place_of(tab, PHOTOS)
    panel = photos_panel(tab)
    panel.locator(".notes li").wait_for()
    assert panel.locator(".status").text_content() == "No photos yet"
    assert panel.locator(".notes li").all_text_contents() == [
        "There is no folder 'input/my-dog'. Choose one from the menu, or drop photos on Load "
        "Instance Images, which makes one."
    ]


def test_nothing_of_the_photos_is_written_into_the_workflow(tab, stored):
    workflow = toy_workflow()
    tab.load(workflow)
    place_of(tab, PHOTOS)
    panel = photos_panel(tab)
    panel.locator(".photos li").first.wait_for()
    saved = tab.page.evaluate("app.rootGraph.serialize()")
    values = {node["id"]: node.get("widgets_values") for node in saved["nodes"]}
    for node in workflow["nodes"]:
        if node["id"] in (PHOTOS, CLASS_IMAGES):
            assert values[node["id"]] == node["widgets_values"]
    assert "dreambooth_photos" not in json.dumps(saved)


# --- Class images -------------------------------------------------------------------------------


def test_class_images_are_shown_while_they_are_drawn_and_after_a_reload(tab):
    workflow = toy_workflow(steps=3)
    (priors,) = [node for node in workflow["nodes"] if node["id"] == CLASS_IMAGES]
    priors["widgets_values"][2:7] = [8, "Euler", 20, 4, int.from_bytes(secrets.token_bytes(2))]
    priors["widgets_values"][9] = 2
    tab.load(workflow)
    tab.page.evaluate(
        "() => { window.seen = new Set(); new MutationObserver(() => seen.add(document"
        ".querySelector('.dreambooth-class .status').textContent)).observe(document.querySelector("
        "'.dreambooth-class'), { subtree: true, childList: true, characterData: true }) }"
    )
    place_of(tab, CLASS_IMAGES)
    tab.run()
    panel = tab.page.locator(f".dreambooth-class[data-node='{CLASS_IMAGES}']")
    panel.locator(".status", has_text="of 8").wait_for()
    tab.page.locator(".dreambooth-class[data-state='finished']").wait_for(state="attached")
    assert panel.locator(".status").text_content() == "8 class images"
    assert panel.locator("img").count() == 8
    panel.locator("img").evaluate_all("all => Promise.all(all.map(each => each.decode()))")
    names = panel.locator("img").evaluate_all("all => all.map(each => each.alt)")
    assert names == sorted(names, key=lambda name: int(name.split()[-1]), reverse=True)
    counts = [text for text in tab.page.evaluate("[...seen]") if text.startswith("Class images")]
    assert len(counts) > 2
    assert "Reading" not in tab.page.locator("body").inner_text()
    tab.wait_for_state("finished")
    tab.reload()
    panel.locator(".status", has_text="8 class images").wait_for(state="attached")
    assert panel.locator("img").count() == 8


def test_class_images_of_a_folder_are_shown_as_well(tab, stored):
    workflow = toy_workflow()
    tab.load(workflow)
    place_of(tab, CLASS_IMAGES)
    tab.page.evaluate(
        "([id, value]) => { const node = app.rootGraph.getNodeById(id);"
        " const menu = node.widgets.find(each => each.name == 'images'); menu.value = value;"
        " menu.callback?.(value) }",
        [CLASS_IMAGES, "a folder of my own"],
    )
    tab.page.wait_for_function(
        "id => app.rootGraph.getNodeById(id).widgets.some(each => each.name == 'images.folder')",
        arg=CLASS_IMAGES,
    )
    tab.page.evaluate(
        "([id, value]) => { const node = app.rootGraph.getNodeById(id);"
        " const folder = node.widgets.find(each => each.name == 'images.folder');"
        " folder.value = value; folder.callback?.(value) }",
        [CLASS_IMAGES, f"input/{stored.name}"],
    )
    panel = panel_of(tab, f"input/{stored.name}")
    assert panel.locator(".status").text_content() == "4 class images"
    assert panel.get_by_role("button", name="Remove cup 0.png").count() == 0
    assert panel.locator("img").count() == 4
