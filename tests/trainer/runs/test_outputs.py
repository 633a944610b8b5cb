"""The contents of a run's files, for a checkpoint and an embedding side by side."""

import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from trainer.data.examples import Example
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.runs.outputs import Outputs
from trainer.settings.config import DatasetConfig, OutputConfig, TrainingConfig
from trainer.training.ema import EMA
from trainer.training.session import Session

STARTED = datetime(2024, 5, 1, tzinfo=timezone.utc)


@pytest.fixture
def session(tiny_model, tmp_path) -> Session:
    """A session that trains a checkpoint and an embedding, with all weights changed by 0.5."""
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    config = TrainingConfig(
        base=tiny_model.path,
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of <tok>"),
        output=OutputConfig(folder=tmp_path / "out", name="dog", keep=1, dtype="fp32"),
    )
    photos = [Example(Path("a.png"), ("a photo of <tok>",))]
    trainable = FullFineTune(train_embedding=True).attach(tiny_model, config, photos)
    session = Session(config, tiny_model, trainable, _NoBatches())
    with torch.no_grad():
        for parameter in session.parameters:
            parameter.add_(0.5)
    return session


class _NoBatches:
    def state(self) -> None: ...


def test_each_file_contains_its_parts_and_its_metadata(session, tmp_path):
    files = Outputs(session, {"modelspec.title": "dog"}, STARTED, ()).save_final()
    assert {kind: path.name for kind, path in files.items()} == {
        "checkpoint": "dog.safetensors", "embedding": "dog-embedding.safetensors",
    }  # fmt: skip
    assert torch.equal(load_file(files["embedding"])["clip_l"], torch.full((1, 24), 1.5))
    name = "model.diffusion_model.out.2.bias"
    old = session.model.source.tensor(name)
    torch.testing.assert_close(load_file(files["checkpoint"])[name], old + 0.5)
    for kind, path in files.items():
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        assert metadata["modelspec.title"] == "dog"
        assert ("dreambooth.placeholder" in metadata) == (kind == "embedding")
        assert ("dreambooth.constants" in metadata) == (kind == "checkpoint")


def test_the_configured_number_of_intermediate_files_of_each_kind_is_kept(session, tmp_path):
    earlier = tmp_path / "out" / "dog-step000000.safetensors"
    earlier.parent.mkdir()
    earlier.touch()
    outputs = Outputs(session, {}, STARTED, [earlier])
    for step in (1, 2):
        session.reports = [None] * step
        outputs._metadata = lambda file: {}
        outputs.save_step()
    assert sorted(path.name for path in earlier.parent.iterdir()) == [
        "dog-embedding-step000002.safetensors", "dog-step000002.safetensors",
    ]  # fmt: skip


def test_only_the_last_files_may_use_the_space_of_the_result(session, small_disk, caplog):
    disk = small_disk(64 << 20)
    session.trainable.files = [
        replace(file, output=replace(file.output, folder=disk)) for file in session.trainable.files
    ]
    outputs = Outputs(session, {}, STARTED, ())
    session.reports, outputs._metadata = [None], lambda file: {}
    one_and_a_half = session.model.path.stat().st_size * 3 // 2
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - one_and_a_half))
    assert (outputs.save_step(), outputs.save_best()) == ({}, {})
    assert [message.split(": ")[0] for message in caplog.messages] == [
        "Could not save the weights of step 1",
        "Could not save the best weights so far, of step 1",
    ]  # fmt: skip
    assert sorted(outputs.save_step(is_last=True)) == ["checkpoint", "embedding"]


def test_saves_are_listed_by_step_with_all_their_files(session, tmp_path):
    """Saves of an earlier session are included, and the newer of two saves of a step. A step with a
    deleted file is left out, and the last step, which is the result."""
    session.trainable.files = [
        replace(file, output=replace(file.output, keep=5)) for file in session.trainable.files
    ]
    folder = tmp_path / "out"
    folder.mkdir()
    earlier = [
        folder / f"{name}-step{step}.safetensors"
        for step in ("000001", "000002", "000003") for name in ("dog", "dog-embedding")
    ]  # fmt: skip
    for path in earlier:
        path.touch()
    outputs = Outputs(session, {}, STARTED, earlier)
    session.reports = [None] * 3
    outputs._metadata = lambda file: {}
    outputs.save_step()
    session.reports = [None] * 4
    outputs.save_step()
    (folder / "dog-embedding-step000002.safetensors").unlink()
    assert outputs.saves() == [
        {
            "checkpoint": folder / f"dog-step{step}.safetensors",
            "embedding": folder / f"dog-embedding-step{step}.safetensors",
        }
        for step in ("000001", "000003_00001")
    ]


def test_movement_is_reported_by_part(session):
    moved = Outputs(session, {}, STARTED, ()).moved()
    assert sorted(moved) == ["embedding", "unet"]
    assert (moved["embedding"].length, moved["embedding"].share) == (pytest.approx(0.5), 1)


def test_with_an_average_it_is_saved_and_its_movement_reported(session, tmp_path):
    """The average has changed half as much as the weights."""
    session.ema = EMA(session.parameters, decay=0.9)
    with torch.no_grad():
        for average in session.ema.averages:
            average.sub_(0.25)
    outputs = Outputs(session, {}, STARTED, ())
    assert outputs.moved()["embedding"].length == pytest.approx(0.25)
    session.reports = [None]
    outputs._metadata = lambda file: {}
    for save in (outputs.save_step, outputs.save_best, outputs.save_final):
        saved = load_file(save()["embedding"])["clip_l"]
        assert torch.equal(saved, torch.full((1, 24), 1.25)), save
    assert torch.equal(session.trainable.files[1].original.tensor("clip_l"), torch.ones(1, 24))
    assert torch.equal(session.parameters[-1].detach(), torch.full((1, 24), 1.5))


def test_metadata_of_the_original_is_kept_unless_the_run_overrides_it(session):
    source = session.trainable.files[0].original
    source.metadata.update({"modelspec.title": "base", "license": "free"})
    path = Outputs(session, {"modelspec.title": "dog"}, STARTED, ()).save_final()["checkpoint"]
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert (metadata["modelspec.title"], metadata["license"]) == ("dog", "free")
