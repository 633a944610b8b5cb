"""What Generate Class Priors sends to pages while it draws, from a real ComfyUI."""

import pytest

pytestmark = pytest.mark.xdist_group("comfyui")

CLASS_IMAGES = "/dreambooth/class_images"


@pytest.fixture
def graph(toy_graph, priors_node, new_seed):
    """Builds a graph that draws class images with a seed of its own, and trains on them."""

    def build(num_images=8, *, steps=10, batch_size=4, train=2):
        graph = toy_graph(seed=new_seed, name="class images", **{"preset.steps": train})
        graph["6"] = priors_node(num_images, seed=new_seed, steps=steps, batch_size=batch_size)
        graph["3"]["inputs"] |= {"class_dataset": ["6", 0], "preset.prior_weight": 1.0}
        return graph

    return build


def views_in(outcome):
    return [data for kind, data in outcome.events if kind == "dreambooth.class_images"]


def latest(comfyui):
    return comfyui.get(CLASS_IMAGES)["views"][-1]


def test_class_images_are_counted_one_by_one(comfyui, graph):
    outcome = comfyui.run(graph())
    assert outcome.end == "execution_success", outcome.error
    counts = list(dict.fromkeys(text for text in outcome.texts if text.startswith("Class images")))
    assert counts == [f"Class images {done}/8" for done in range(9)]
    view = latest(comfyui)
    assert (view["node"], view["state"], view["done"], view["total"]) == ("6", "finished", 8, 8)
    folder = comfyui.base / "output" / view["folder"]
    assert view["files"] == sorted(path.name for path in folder.glob("*.png"))
    assert views_in(outcome)[0].keys() == view.keys()
    versions = [each["version"] for each in views_in(outcome)]
    assert versions == sorted(set(versions))


def test_the_share_grows_within_a_batch(comfyui, graph):
    shares, counts = [], []

    def listen(outcome):
        view = latest(comfyui) if outcome.texts and outcome.texts[-1].startswith("Class") else None
        if view and view["state"] == "drawing":
            shares.append(view["share"])
            counts.append(view["done"])

    comfyui.run(graph(steps=40), on_message=listen)
    first_batch = [share for share, done in zip(shares, counts, strict=True) if done == 0]
    assert first_batch == sorted(first_batch)
    assert 0 < first_batch[-1] < 1
    assert len(set(first_batch)) > 3


def test_no_activity_stays_on_the_node(comfyui, graph):
    wanted = graph()
    wanted["2"]["inputs"]["instance_prompt"] = "a photo of zwx cup"  # not in ComfyUI's cache
    outcome = comfyui.run(wanted)
    assert outcome.last_texts["6"] == "8 class images"
    assert outcome.last_texts["2"] == "6 photos"
    assert any(text.startswith("Encoding class images ") for text in outcome.texts)
    assert any(text.startswith("Encoding photos ") for text in outcome.texts)


def test_the_node_s_output_contains_the_view_also_if_the_images_exist(
    comfyui, graph, toy_graph, new_seed
):
    first = comfyui.run(graph()).outputs("6")["dreambooth_class_images"]
    assert [view["state"] for view in first] == ["finished"]
    comfyui.run(toy_graph(seed=new_seed + 500, name="other"))  # empties ComfyUI's cache
    again = comfyui.run(graph(train=3)).outputs("6")["dreambooth_class_images"]
    assert again[0]["files"] == first[0]["files"]
    assert again[0]["done"] == 8


def test_stopping_says_how_to_continue(comfyui, graph):
    def stop(outcome):
        if "Class images 2/8" in outcome.texts:
            comfyui.interrupt()

    assert comfyui.run(graph(), on_message=stop).end == "execution_interrupted"
    view = latest(comfyui)
    assert view["state"] == "stopped"
    assert view["message"] == "Stopped. Run the same again to draw the missing ones."
    assert 2 <= view["done"] == len(view["files"]) < 8
    comfyui.run(graph())
    assert (latest(comfyui)["state"], latest(comfyui)["done"]) == ("finished", 8)


def test_a_failure_is_in_the_view(comfyui, graph):
    wanted = graph()
    wanted["6"]["inputs"]["class_prompt"] = " "
    outcome = comfyui.run(wanted)
    view = latest(comfyui)
    assert (view["state"], view["message"]) == ("failed", outcome.error[1])


def test_only_the_last_sixteen_views_are_kept(comfyui, graph):
    wanted = graph()
    for number in range(17):
        wanted["6"]["inputs"]["class_prompt"] = " " * number
        assert comfyui.run(wanted).end == "execution_error"
    assert len(comfyui.get(CLASS_IMAGES)["views"]) == 16
