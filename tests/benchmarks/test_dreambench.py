"""The paper's evaluation, with random weights: a narrow model in Stable Diffusion 1.5's layout,
CLIP and DINO. The dataset has the paper's format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from benchmarks.dreambench import table
from benchmarks.dreambench.__main__ import main, make_studio, parser
from benchmarks.dreambench.dataset import choose, choose_prompts, read_lists, read_subjects
from benchmarks.dreambench.table import PAPER, Results, to_json, to_text
from trainer.evaluation.encoders import load as load_encoder
from trainer.families.sd1 import SD1
from trainer.observer import Observer

PHOTOS = Path(__file__).parents[3] / "shared" / "photos"
SIDE = 64
LISTS = """Classes

subject_name,class
cup,cup
grey_cat,Cat
old_boot , snow boot
lost,hat

Prompts

Object Prompts

prompt_list = [
'a {0} {1} on a shelf'.format(unique_token, class_token),
"a {0} {1} on the cook's table".format(unique_token, class_token),
'a green {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} on a sofa'.format(unique_token, class_token),
'a {0} {1} in a bow tie'.format(unique_token, class_token),
'a green {0} {1}'.format(unique_token, class_token)
]
"""
SMALL = {
    "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1,
}  # fmt: skip


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    for name in ("cup", "grey_cat", "old_boot"):
        (folder / name).mkdir(parents=True)
        for number in range(2):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.jpg")
    (folder / "prompts_and_classes.txt").write_text(LISTS, "utf-8")
    return folder


# -------------------------------------------------------------------- dataset


def test_subjects_have_their_classes_photos_and_prompts(dataset: Path):
    (dataset / "cup" / "._00.jpg").write_bytes(b"a Mac's")
    cup, cat, boot = read_subjects(dataset)  # `lost` has no photos
    assert [path.name for path in cup.photos] == ["00.jpg", "01.jpg"]
    assert (cat.name, cat.class_name, boot.class_name) == ("grey_cat", "cat", "snow boot")
    assert boot.instance_prompt("sks") == "a sks snow boot"
    assert boot.class_prompt == "a snow boot"
    assert cup.prompt(1, "sks") == "a sks cup on the cook's table"
    assert cup.prompt(2) == "a green cup"
    assert cat.prompt(1) == "a cat in a bow tie"  # a prompt for live subjects


@pytest.mark.parametrize("below", [True, False])
def test_photos_may_be_in_the_dataset_folder_of_the_original_repository(dataset: Path, below: bool):
    top = dataset.rename(dataset.parent / "dataset").parent
    if not below:
        (top / "dataset" / "prompts_and_classes.txt").rename(top / "prompts_and_classes.txt")
    assert [subject.name for subject in read_subjects(top)] == ["cup", "grey_cat", "old_boot"]


def test_other_line_breaks_and_a_byte_order_mark_change_nothing(dataset: Path):
    file = dataset / "prompts_and_classes.txt"
    before = read_lists(file)
    text = LISTS.replace("\n\n", "\n \n").replace("\n", "\r\n").replace("Object P", "OBJECT P")
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_lists(file) == before
    assert len(before.object_prompts) == len(before.live_prompts) == 3


@pytest.mark.photos
@pytest.mark.skipif(not PHOTOS.exists(), reason="no shared photos beside the checkout")
def test_the_papers_own_file_is_read():
    lists = read_lists(PHOTOS / "prompts_and_classes.txt")
    live = [name for name, kind in lists.classes.items() if kind in ("cat", "dog")]
    assert (len(lists.classes), len(live)) == (30, 9)
    assert len(lists.object_prompts) == len(lists.live_prompts) == 25
    # The two lists share ten places and five properties.
    assert len(set(lists.object_prompts) & set(lists.live_prompts)) == 15


def test_prompts_are_chosen_by_numbers_and_ranges(dataset: Path):
    subjects = read_subjects(dataset)
    assert choose_prompts([], subjects) == [0, 1, 2]
    assert choose_prompts(["3", "1-2", "2"], subjects) == [0, 1, 2]
    assert choose_prompts(["2-3"], subjects) == [1, 2]


# ------------------------------------------------------------------- refusals


@pytest.mark.parametrize("text", ["0", "4", "2-4", "3-2", "two", "-1"])
def test_unknown_prompts_are_refused(dataset: Path, text: str):
    with pytest.raises(ValueError) as caught:
        choose_prompts([text], read_subjects(dataset))
    assert str(caught.value) == (
        f"--prompts must be numbers from 1 to 3 or ranges, such as 3 or 1-5, got '{text}'."
    )


def test_unknown_subjects_are_refused(dataset: Path):
    subjects = read_subjects(dataset)
    with pytest.raises(ValueError) as caught:
        choose(subjects, ["cup", "lost"])
    assert str(caught.value) == "--subjects must be among cup, grey_cat, old_boot, got 'lost'."
    assert choose(subjects, ["old_boot", "cup", "cup"]) == [subjects[2], subjects[0]]


def test_a_folder_without_the_file_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError) as caught:
        read_subjects(tmp_path)
    assert str(caught.value) == (
        f"There is no prompts_and_classes.txt in {tmp_path}. Name the folder of the DreamBooth "
        "paper's dataset, which has this file beside the subjects' folders or above them."
    )


def test_a_folder_without_photos_is_refused(tmp_path: Path):
    (tmp_path / "prompts_and_classes.txt").write_text(LISTS, "utf-8")
    with pytest.raises(ValueError) as caught:
        read_subjects(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no photos of the 4 subjects in prompts_and_classes.txt. Put the folders "
        "of the dataset there, such as cup."
    )


@pytest.mark.parametrize(
    ("old", "what"),
    [("Classes", "classes"), ("Object Prompts", "object prompts"),
     ("Live Subject Prompts", "live subject prompts")],
)  # fmt: skip
def test_a_file_without_a_heading_is_refused(tmp_path: Path, old: str, what: str):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(LISTS.replace(old, "Other things"), "utf-8")
    with pytest.raises(ValueError) as caught:
        read_lists(file)
    assert str(caught.value) == (
        f"'{file}' has no {what} under a heading of that name. Use the dataset's original file."
    )


def test_a_prompt_without_placeholders_is_refused(tmp_path: Path):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_text(LISTS.replace("a {0} {1} on a sofa", "a {0} on a sofa"), "utf-8")
    line = LISTS.splitlines().index("'a {0} {1} on a sofa'.format(unique_token, class_token),") + 1
    with pytest.raises(ValueError) as caught:
        read_lists(file)
    assert str(caught.value) == (
        f"The prompt 'a {{0}} on a sofa' in line {line} of '{file}' lacks {{0}} for the "
        "identifier or {1} for the class. Use the dataset's original file."
    )


def test_a_file_in_another_encoding_is_refused(tmp_path: Path):
    file = tmp_path / "prompts_and_classes.txt"
    file.write_bytes(LISTS.encode("utf-16"))
    with pytest.raises(ValueError) as caught:
        read_lists(file)
    assert str(caught.value) == f"'{file}' is not UTF-8 text. Save it as UTF-8."


# ------------------------------------------------------------------- settings


def settings(*flags: str):
    """Steps, photos per step, learning rate, prior weight, number of class images, and whether the
    text encoder is trained."""
    studio = make_studio(parser().parse_args(["--checkpoint", "a", "--dataset", "b", *flags]))
    made, prior = studio.changes, studio.changes["prior"]
    rate = made["optimizer"]["learning_rate"]
    return (made["steps"], made["batch_size"], rate, prior["weight"], prior["num_images"],
            studio.method.train_text_encoder)  # fmt: skip


def test_flags_override_the_preset():
    assert settings() == (1000, 1, 5e-6, 1.0, 1000, False)  # the paper's
    assert settings("--preset", "object") == (400, 4, 2e-6, 0.0, 200, False)
    assert settings("--preset", "object", "--class-images", "50")[3:5] == (1.0, 50)
    assert settings("--preset", "object", "--prior-weight", "0.5")[3:5] == (0.5, 200)
    assert settings("--preset", "face") == (1200, 2, 1e-6, 1.0, 200, True)
    assert settings("--preset", "face", "--class-images", "0", "--no-text-encoder")[3:] == (
        0.0, 200, False,
    )  # fmt: skip
    flags = ["--steps", "7", "--batch-size", "3", "--learning-rate", "1e-3", "--text-encoder"]
    assert settings(*flags) == (7, 3, 1e-3, 1.0, 1000, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--images", "0"], "--images must be 1 to 1000, got 0."),
        (["--pres-pictures", "-1"], "--pres-pictures must be 0 or more, got -1."),
        (["--class-images", "0", "--prior-weight", "0.5"],
         "--prior-weight is 0.5, but --class-images is 0. Give one of the two alone."),
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(flags: list[str], message: str):
    with pytest.raises(ValueError) as caught:
        settings(*flags)
    assert str(caught.value) == message


# ---------------------------------------------------------------------- table


def results(dataset: Path, measures: dict[str, dict[str, float]]) -> Results:
    return Results(
        label="ours.safetensors", subjects=read_subjects(dataset)[:2], measures=measures,
        num_prompts=25, num_images=4, remarks=["Without --clip, there is no CLIP-I and CLIP-T."],
    )  # fmt: skip


def test_the_table_has_the_papers_rows_and_ours(dataset: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(table, "PAPER", dict(list(PAPER.items())[:3]))
    found = results(dataset, {
        "cup": {"DINO": 0.5, "DINO, photos": 0.75, "PRES": 0.25, "diversity": 0.125},
        "grey_cat": {"DINO": 0.7004, "DINO, photos": 0.76, "PRES": 0.25, "diversity": 0.375},
    })  # fmt: skip
    assert (
        to_text(found)
        == """\
|                                      |  DINO | CLIP-I | CLIP-T |  PRES |
| ------------------------------------ | ----: | -----: | -----: | ----: |
| paper: real images                   | 0.774 |  0.885 |      – |     – |
| paper: DreamBooth (Imagen)           | 0.696 |  0.812 |  0.306 |     – |
| paper: DreamBooth (Stable Diffusion) | 0.668 |  0.803 |  0.305 |     – |
| ours: the photos among themselves    | 0.755 |      – |      – |     – |
| ours: ours.safetensors               | 0.600 |      – |      – | 0.250 |

**Not the paper's protocol**, so these numbers cannot be compared with the paper's: subjects 2 \
instead of 30.

Without --clip, there is no CLIP-I and CLIP-T.

Lower is better for PRES, higher for the others. Our diversity is 1 minus the mean cosine of DINO \
over images of one prompt. The paper's DIV uses LPIPS and cannot be compared with it.

|                |  DINO | CLIP-I | CLIP-T |  PRES | diversity |
| -------------- | ----: | -----: | -----: | ----: | --------: |
| cup (cup)      | 0.500 |      – |      – | 0.250 |     0.125 |
| grey_cat (cat) | 0.700 |      – |      – | 0.250 |     0.375 |
| mean           | 0.600 |      – |      – | 0.250 |     0.250 |
"""
    )


def test_an_unfinished_table_says_so(dataset: Path):
    found = results(dataset, {"cup": {"DINO": 0.5}})
    warning = "**Not finished**: 1 of 2 requested subjects have been measured so far."
    assert warning in to_text(found)
    assert to_json(found)["unfinished"] == ["grey_cat"]


def test_departures_from_the_paper_are_reported(dataset: Path):
    whole = {f"subject{number}": {"DINO": 0.5} for number in range(30)}
    few = {"subjects": [], "label": "", "remarks": []}
    assert Results(measures=whole, num_prompts=25, num_images=4, **few).departures() == []
    assert Results(measures=whole, num_prompts=3, num_images=8, **few).departures() == [
        "prompts 3 instead of 25", "images per prompt 8 instead of 4",
    ]  # fmt: skip


# ----------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def checkpoint(build_networks, four_levels, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "random.safetensors"
    tensors = SD1.checkpoint_tensors(*build_networks(**four_levels))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("encoders")
    seeing = {**SMALL, "patch_size": 8, "image_size": 56}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ViTModel(ViTConfig(**seeing), add_pooling_layer=False).save_pretrained(folder / "dino")
        text = {**SMALL, "vocab_size": 49408}
        clip = CLIPConfig(vision_config=seeing, text_config=text, projection_dim=24)
        CLIPModel(clip).save_pretrained(folder / "clip")
    return {"dino": folder / "dino", "clip": folder / "clip"}


@pytest.fixture
def command(checkpoint, encoders, dataset, tmp_path) -> list[str]:
    return [
        "--checkpoint", str(checkpoint), "--dataset", str(dataset), "--folder",
        str(tmp_path / "out"), "--dino", str(encoders["dino"]), "--clip", str(encoders["clip"]),
        "--prompts", "1-2", "--images", "2", "--pres-pictures", "2", "--steps", "1",
        "--class-images", "2", "--learning-rate", "1e-3", "--resolution", str(SIDE),
        "--sampling-steps", "1", "--device", "cpu",
    ]  # fmt: skip


def read_all(paths) -> list[np.ndarray]:
    return [np.array(Image.open(path).convert("RGB")) for path in paths]


def unit(embeddings) -> np.ndarray:
    array = np.asarray(embeddings, dtype=np.float64)
    return array / np.linalg.norm(array, axis=1, keepdims=True)


def test_everything_is_generated_measured_and_reused(
    command, dataset, encoders, tmp_path, capsys, caplog
):
    caplog.set_level("INFO")
    out = tmp_path / "out"
    assert main([*command, "--subjects", "cup", "grey_cat"]) == 0
    made = json.loads((out / "table.json").read_text("utf-8"))
    printed = capsys.readouterr().out
    assert printed.endswith((out / "table.md").read_text("utf-8"))
    assert "subjects 2 instead of 30, prompts 2 instead of 25, images per prompt 2" in printed
    assert made["remarks"] == ["This DINO is not ViT-S/16, which the paper uses."]
    assert made["unfinished"] == []
    assert_measured(made, out, dataset, encoders)

    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    assert (
        len(written) == 2 * (2 * 2 + 2) + 2 * 2
    )  # the images, and the class images of two classes
    scores = (out / "scores.jsonl").read_text("utf-8")
    assert len(scores.splitlines()) == 2 * 2
    caplog.clear()
    assert main(command) == 0  # one subject more
    more = (out / "scores.jsonl").read_text("utf-8").removeprefix(scores)
    assert [json.loads(line)["about"]["subject"] for line in more.splitlines()] == ["old_boot"] * 2
    again = json.loads((out / "table.json").read_text("utf-8"))
    assert {name: again["subjects"][name] for name in ("cup", "grey_cat")} == made["subjects"]
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())
    trained = [path.stem for path in (out / "models").glob("*.safetensors")]
    assert sorted(trained) == ["cup", "grey_cat", "old_boot"]
    assert "Reusing the finished run" not in caplog.text  # the trainer was not even called


def assert_measured(made: dict, out: Path, dataset: Path, encoders: dict[str, Path]) -> None:
    """Compute every number again from the files, pair by pair."""
    cpu = torch.device("cpu")
    dino, clip = (load_encoder(encoders[kind], cpu) for kind in ("dino", "clip"))
    prompts = {
        "cup": ["a cup on a shelf", "a cup on the cook's table"],
        "grey_cat": ["a cat on a sofa", "a cat in a bow tie"],
    }
    for name, found in made["subjects"].items():
        (folder,) = (out / "pictures").glob(f"{name}-*")
        images = read_all(sorted(folder.glob("prompt*.png")))
        photos = read_all(sorted((dataset / name).iterdir()))
        assert len(images) == 4
        seen, known = unit(dino.embed_images(images)), unit(dino.embed_images(photos))
        of_class = unit(dino.embed_images(read_all(sorted(folder.glob("class*.png")))))
        clips, own = unit(clip.embed_images(images)), unit(clip.embed_images(photos))
        read = unit(clip.embed_prompts(prompts[name]))
        assert found == pytest.approx({
            "DINO": np.mean([a @ b for a in seen for b in known]),
            "DINO, photos": known[0] @ known[1],
            "PRES": np.mean([a @ b for a in of_class for b in known]),
            "diversity": np.mean([1 - seen[0] @ seen[1], 1 - seen[2] @ seen[3]]),
            "CLIP-I": np.mean([a @ b for a in clips for b in own]),
            "CLIP-I, photos": own[0] @ own[1],
            "CLIP-T": np.mean([image @ read[i // 2] for i, image in enumerate(clips)]),
        }, abs=1e-5)  # fmt: skip
    for measure, mean in made["ours"].items():
        one, other = (found[measure] for found in made["subjects"].values())
        assert mean == pytest.approx((one + other) / 2)


def test_a_wider_choice_only_generates_missing_images(command, tmp_path):
    narrow = [*command, "--subjects", "cup", "--class-images", "0"]
    wide = [*narrow, "--prompts", "1-3"]
    assert main([*narrow, "--prompts", "2", "--discard-checkpoints"]) == 0
    out = tmp_path / "out"
    assert list((out / "models").glob("*.safetensors")) == []
    before = {path.name: path.stat().st_mtime_ns for path in out.rglob("prompt*.png")}
    assert [name.partition("-")[0] for name in before] == ["prompt02"] * 2
    assert main(wide) == 0  # trained again, as the checkpoint is gone
    after = {path.name: path.stat().st_mtime_ns for path in out.rglob("prompt*.png")}
    assert len(after) == 6
    assert before.items() <= after.items()


def test_a_stopped_command_resumes(command, tmp_path, caplog, monkeypatch):
    """Stopped between the second and the third of three steps."""
    caplog.set_level("INFO")
    command = [*command, "--subjects", "cup", "--class-images", "0", "--steps", "3"]

    class Stopping(Observer):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def on_step(self, report):
            if report.step == 2:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("benchmarks.dreambench.runs.TerminalObserver", Stopping)
        assert main(command) == 130
    assert caplog.messages[-1] == "Stopped. Run the same command again to continue."
    assert not (tmp_path / "out" / "table.md").exists()
    assert main(command) == 0
    assert "Resuming after step 2." in caplog.messages


def test_one_encoder_is_enough(command, tmp_path, capsys):
    place = command.index("--dino")
    assert main([*command[:place], *command[place + 2 :], "--subjects", "cup"]) == 0
    found = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))
    assert list(found["ours"]) == ["CLIP-I", "CLIP-I, photos", "CLIP-T"]
    assert "Without --dino, there is no DINO, PRES and diversity." in capsys.readouterr().out


def test_missing_and_wrong_encoders_are_refused(command, encoders, tmp_path, caplog):
    place = command.index("--dino")
    assert main(command[:place] + command[place + 4 :]) == 1
    assert caplog.messages[-1] == (
        "There is no encoder to score the images. Give DINO with --dino, CLIP with --clip, or both."
    )
    assert main([*command, "--dino", str(encoders["clip"])]) == 1
    assert caplog.messages[-1] == (
        f"--dino is {encoders['clip']}, which is another kind of encoder. Give DINO with --dino "
        "and CLIP with --clip."
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.photos
@pytest.mark.skipif(not PHOTOS.exists(), reason="no shared photos beside the checkout")
def test_photos_of_the_papers_dataset_are_scored(command, tmp_path):
    flags = ["--dataset", str(PHOTOS), "--subjects", "dog6", "duck_toy", "--images", "1"]
    assert main([*command, *flags]) == 0
    found = json.loads((tmp_path / "out" / "table.json").read_text("utf-8"))
    assert list(found["subjects"]) == ["dog6", "duck_toy"]
    text = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert re.search(r"\| dog6 \(dog\) +\| +-?\d\.\d{3} \|", text)
    assert "diversity" not in found["ours"]  # because each prompt has one image
