"""Which changes make a different run, and which do not."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trainer import toy
from trainer.data.examples import Example, find_examples
from trainer.methods.full import FullFineTune
from trainer.methods.textual_inversion import TextualInversion
from trainer.runs.identity import Definition, Hashes, define
from trainer.settings.config import DatasetConfig, PriorConfig, SamplingConfig, TrainingConfig
from trainer.settings.effects import Effect, effects

MANIFESTS = json.loads(Path(__file__).with_name("manifests_version_0.json").read_text("utf-8"))
"""Manifests of real runs of the toy model, written before the numerics versions."""
METHODS = {method.__name__: method for method in (FullFineTune, TextualInversion)}


@pytest.fixture
def photos(tmp_path) -> list[Example]:
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes(name.encode())
    return [Example(tmp_path / name, ("a photo of sks dog",)) for name in ("one.png", "two.png")]


@pytest.fixture
def config(tmp_path) -> TrainingConfig:
    return TrainingConfig(
        base=tmp_path / "base.safetensors",
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of sks dog"),
        prior=PriorConfig(weight=1, prompt="a photo of a dog"),
    )


def name(config: TrainingConfig, photos: list[Example], *, base: str = "00", **method: object):
    return define(config, FullFineTune(**method), base, "", photos, []).identity


@pytest.mark.parametrize(
    "changes",
    [
        {"base": Path("elsewhere/base.safetensors")},
        {"dataset": {"photos": (Path("elsewhere"),)}},
        {"output": {"folder": Path("elsewhere"), "name": "cat", "save_every": 7, "keep": 1}},
        {"output": {"state_every": 3, "keep_state": True}},
        {"gradient_checkpointing": True, "channels_last": True, "compile": True},
        {"batch_size": 2, "gradient_accumulation": 2},
        {"preview": {"prompts": ("a dog",), "every": 3}},
        {"prior": {"weight": 1.0, "sampling": {"guidance_scale": 7.5, "batch_size": 1}}},
        {"ema_decay": 0.5},
        {"prior": {"teacher_ratio": 0.5}},
    ],
)
def test_settings_without_effect_on_the_result_make_the_same_run(config, photos, changes):
    assert name(config.replace(changes), photos) == name(config, photos)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 401},
        {"dataset": {"mirror": True}},
        {"prior": {"prompt": "a dog"}},
        {"prior": {"weight": 0.0}},
        {"prior": {"num_images": 100}},
        {"prior": {"sampling": {"seed": 1}}},
        {"optimizer": {"learning_rate": 3e-6}},
        {"optimizer": {"anchor": 1.0}},
        {"output": {"dtype": "fp16"}},
        {"seed": 1},
        {"precision": "bf16"},
        {"batch_size": 2},
        {"gradient_accumulation": 2},
        {"ema": True},
    ],
)
def test_settings_that_decide_the_result_make_another_run(config, photos, changes):
    assert name(config.replace(changes), photos) != name(config, photos)


def test_the_settings_that_do_not_count_by_their_value():
    found = effects(TrainingConfig)
    of = lambda effect: {name for name in found if found[name] is effect}  # noqa: E731
    files = {
        "base", "embedding", "vae", "loras", "dataset.photos", "dataset.masks", "prior.images",
    }  # fmt: skip
    assert of(Effect.CONTENT) == files
    assert of(Effect.PHOTOS_PER_STEP) == {"batch_size", "gradient_accumulation"}
    assert of(Effect.ROUNDING) == {
        "gradient_checkpointing", "channels_last", "compile", "offload", "sharded",
        "prior.sampling.batch_size",
    }  # fmt: skip


def settings_of(manifest: dict) -> tuple[TrainingConfig, FullFineTune | TextualInversion]:
    """The settings of a run of the toy model on its photos, from its manifest."""
    kept = manifest["config"]
    config = TrainingConfig(base=toy.MODEL, dataset=DatasetConfig(photos=(toy.PHOTOS,), prompt="-"))
    config = config.replace({
        **{name: value for name, value in kept.items() if name != "base"},
        "dataset": {name: value for name, value in kept["dataset"].items() if name != "photos"},
        "output": {**kept["output"], "folder": Path("out")},
    })  # fmt: skip
    options: dict = {}
    for name, value in manifest["definition"].items():
        if name.startswith("method."):
            _, method, option = name.split(".")
            options[option] = value
    return config, METHODS[method](**options)


@pytest.mark.parametrize("name", MANIFESTS)
def test_definitions_of_old_runs_have_not_changed(name, tmp_path):
    """Every key and value is the same, so that old runs are found. Newer settings may add keys."""
    before = dict(MANIFESTS[name]["definition"])
    config, method = settings_of(MANIFESTS[name])
    photos = find_examples(config.dataset.photos, config.dataset.prompt)
    base = Hashes(tmp_path / "hashes.json").sha256(toy.MODEL)
    definition = define(config, method, base, "", method.caption(photos, config.dataset.prompt), [])
    assert definition.differences(before) == []
    assert before.keys() - definition.facts.keys() == {"version of the trainer"}


def test_photos_count_by_content_captions_and_order(config, photos, tmp_path):
    same = name(config, photos)
    shutil.copy(photos[0].path, tmp_path / "renamed.png")
    assert name(config, [replace(photos[0], path=tmp_path / "renamed.png"), photos[1]]) == same
    assert name(config, photos[::-1]) != same
    assert name(config, [replace(photos[0], captions=("a photo",)), photos[1]]) != same
    photos[0].path.write_bytes(b"another")
    assert name(config, photos) != same


def test_the_base_model_and_the_method_count(config, photos):
    assert len({name(config, photos), name(config, photos, base="01"),
                name(config, photos, train_text_encoder=True)}) == 3  # fmt: skip


def test_a_vae_counts_and_runs_older_than_the_setting_have_none(config, photos):
    arguments = (config, FullFineTune(), "00", "", photos, [])
    plain, other = define(*arguments), define(*arguments, vae_sha256="01")
    assert plain.identity != other.identity
    older = {name: value for name, value in plain.facts.items() if name != "vae"}
    assert plain.differences(older) == []
    with_vae = replace(config, vae=Path("vae"))
    assert define(with_vae, *arguments[1:], vae_sha256="01").differences(older) == ["vae"]


def test_class_images_count_only_if_they_are_used(config, photos):
    """The settings that generate class images count only if the user gives none."""
    own = replace(config, prior=replace(config.prior, images=(Path("own"),)))
    other = replace(own, prior=replace(own.prior, sampling=SamplingConfig(seed=5), num_images=3))

    def identify_with(config: TrainingConfig, images: list[Example]) -> str:
        return define(config, FullFineTune(), "00", "", photos, images).identity

    class_images = [replace(photos[0], is_prior=True)]
    assert identify_with(own, class_images) == identify_with(other, class_images)
    assert identify_with(own, class_images) != identify_with(own, [])
    off = replace(config, prior=PriorConfig(prompt="a"))
    assert identify_with(off, []) == identify_with(replace(config, prior=PriorConfig()), [])


def test_masks_count_by_content_and_runs_older_than_masks_have_none(config, photos, tmp_path):
    (tmp_path / "one-mask.png").write_bytes(b"mask")
    masked = [replace(photos[0], mask=tmp_path / "one-mask.png"), photos[1]]
    arguments = (FullFineTune(), "00", "")
    plain = define(config, *arguments, photos, [])
    assert not {"masks", "dataset.unmasked_weight", "dataset.random_backgrounds"} & {*plain.facts}
    found = define(config, *arguments, masked, [])
    assert found.differences(plain.facts) == ["masks"]
    assert "masks" in plain.differences(found.facts)
    shutil.copy(tmp_path / "one-mask.png", tmp_path / "renamed.png")
    same = [replace(photos[0], mask=tmp_path / "renamed.png"), photos[1]]
    assert name(config, same) == name(config, masked)
    other = [photos[0], replace(photos[1], mask=tmp_path / "one-mask.png")]
    assert name(config, other) != name(config, masked)
    (tmp_path / "one-mask.png").write_bytes(b"other")
    assert name(config, masked) != found.identity


@pytest.mark.parametrize("change", [{"unmasked_weight": 0.5}, {"random_backgrounds": 4}])
def test_settings_of_masks_count_only_with_masks(config, photos, tmp_path, change):
    changed = config.replace({"dataset": change})
    assert name(changed, photos) == name(config, photos)
    (tmp_path / "one-mask.png").write_bytes(b"mask")
    masked = [replace(photos[0], mask=tmp_path / "one-mask.png"), photos[1]]
    assert name(changed, masked) != name(config, masked)
    alpha = {**change, "masks": "alpha"}
    assert name(config.replace({"dataset": alpha}), photos) != name(config, photos)
    assert name(config.replace({"dataset": {"masks": "off"}}), photos) == name(config, photos)


def test_the_teacher_counts_with_or_without_class_images(config, photos):
    for weight in (0.0, 1.0):
        names = {
            name(config.replace({"prior": {"weight": weight, **changes}}), photos)
            for changes in (
                {}, {"teacher_weight": 1.0}, {"teacher_weight": 2.0},
                {"teacher_weight": 1.0, "prompt": "a dog"},
                {"teacher_weight": 1.0, "teacher_ratio": 0.5},
            )
        }  # fmt: skip
        assert len(names) == 5
    one = config.replace({"prior": {"weight": 0.0, "teacher_weight": 1.0}})
    assert name(one.replace({"prior": {"num_images": 7}}), photos) == name(one, photos)


def test_a_definition_knows_which_settings_are_at_their_defaults(config, photos):
    method = FullFineTune(train_text_encoder=True)
    changes = {"ema": True, "prior": {"ratio": 2.0, "sampling": {"steps": 7}}}
    found = define(config.replace(changes), method, "00", "", photos, []).at_default
    at_default = {
        "seed", "dataset.mirror", "prior.num_images", "prior.sampling.seed",
        "method.FullFineTune.train_embedding",
    }  # fmt: skip
    others = {
        "ema", "dataset.prompt", "prior.weight", "prior.ratio", "prior.sampling.steps",
        "method.FullFineTune.train_text_encoder",
    }  # fmt: skip
    assert found & (at_default | others) == at_default


def test_none_differs_from_a_missing_value():
    definition = Definition({"resolution": None, "crop": "center"}, frozenset({"crop"}))
    assert definition.differences({"resolution": None}) == []
    assert definition.differences({"crop": "center"}) == ["resolution"]
    assert definition.differences({"resolution": None, "crop": "random"}) == ["crop"]
    assert definition.differences({"resolution": None, "gone": None}) == ["gone"]


def test_a_file_is_hashed_again_only_after_it_was_written_to(tmp_path):
    path = tmp_path / "base.safetensors"
    save_file({"weight": torch.zeros(10)}, path)
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Hashes(tmp_path / "hashes.json").sha256(path) == expected
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert Hashes(tmp_path / "hashes.json").sha256(path) == expected  # it was not read again
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Hashes(tmp_path / "hashes.json").sha256(path) == hashlib.sha256(content).hexdigest()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Hashes(tmp_path / "hashes.json").sha256(tmp_path / "none.safetensors")
    assert str(caught.value) == (
        f"There is no file {tmp_path / 'none.safetensors'}. Name an existing .safetensors or "
        ".ckpt checkpoint."
    )


def test_hashes_that_cannot_be_written_are_a_warning(tmp_path, caplog):
    (tmp_path / "hashes.json").mkdir()
    found = Hashes(tmp_path / "hashes.json").sha256(toy.MODEL)
    assert found == hashlib.sha256(toy.MODEL.read_bytes()).hexdigest()
    (message,) = caplog.messages
    assert message.startswith("Could not save the hashes of the files that the run uses: ")
    assert [path.name for path in tmp_path.iterdir()] == ["hashes.json"]


@pytest.mark.posix
def test_hashes_that_cannot_be_read_are_a_warning(tmp_path, monkeypatch, caplog):
    (tmp_path / "hashes.json").write_text("{}")

    def fail(path: Path, *rest: object) -> str:
        raise OSError(5, "it broke")

    monkeypatch.setattr(Path, "read_text", fail)
    found = Hashes(tmp_path / "hashes.json").sha256(toy.MODEL)
    assert found == hashlib.sha256(toy.MODEL.read_bytes()).hexdigest()
    assert set(caplog.messages) == {
        f"The hashes in '{tmp_path / 'hashes.json'}' cannot be read (it broke), so the files are "
        "read again."
    }


@pytest.mark.parametrize("entry", [5, [], "x", None, {}, {"stamp": None}])
def test_remembered_hashes_that_others_wrote_are_ignored(tmp_path, entry):
    path = tmp_path / "base.safetensors"
    save_file({"weight": torch.zeros(10)}, path)
    stat = path.stat()
    if entry == {"stamp": None}:
        entry = {"stamp": [stat.st_size, stat.st_mtime_ns]}
    (tmp_path / "hashes.json").write_text(json.dumps({str(path): entry}))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert Hashes(tmp_path / "hashes.json").sha256(path) == expected
