"""The metadata of a file: strings that other programs know, and nothing of the user's machine."""

import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from trainer.data.examples import Example
from trainer.methods.full import FullFineTune
from trainer.observer import StepReport
from trainer.runs.metadata import describe_progress, describe_run
from trainer.settings.config import (
    DatasetConfig,
    OutputConfig,
    PreviewConfig,
    PriorConfig,
    ScoringConfig,
    TrainingConfig,
)


def test_the_run_is_described_in_strings(tiny_model, tmp_path):
    photo = tmp_path / "one.png"
    photo.write_bytes(b"pixels")
    config = TrainingConfig(
        base=tiny_model.path,
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a photo of sks dog"),
        output=OutputConfig(folder=tmp_path / "secret", name="my-dog"),
    )
    method = FullFineTune(train_text_encoder=True, text_encoder_learning_rate=1e-7)
    trainable = method.attach(tiny_model, config, [])
    mask = tmp_path / "one-mask.png"
    mask.write_bytes(b"mask")
    examples = [Example(photo, ("a photo of sks dog",), mask=mask)]
    described = describe_run(config, method, tiny_model, trainable, examples)

    assert all(isinstance(value, str) for value in described.values())
    assert described["modelspec.architecture"] == "stable-diffusion-v1"
    assert described["modelspec.title"] == described["ss_output_name"] == "my-dog"
    assert described["modelspec.resolution"] == "16x16"
    assert (described["ss_unet_lr"], described["ss_text_encoder_lr"]) == ("2e-06", "1e-07")
    base = hashlib.sha256(Path(tiny_model.path).read_bytes()).hexdigest()
    assert described["ss_new_sd_model_hash"] == described["dreambooth.base_sha256"] == base
    (image,) = json.loads(described["dreambooth.images"])
    assert image["sha256"] == hashlib.sha256(b"pixels").hexdigest()
    assert image["mask_sha256"] == hashlib.sha256(b"mask").hexdigest()
    assert str(tmp_path) not in "".join(described.values())


def test_private_metadata_is_left_out(tiny_model, tmp_path):
    photo = tmp_path / "aunt emma.png"
    photo.write_bytes(b"pixels")
    prompts = {"dataset": "a photo of emma", "prior": "a photo of a lady", "preview": "emma at sea"}
    config = TrainingConfig(
        base=tiny_model.path,
        dataset=DatasetConfig(photos=(photo,), prompt=prompts["dataset"]),
        prior=PriorConfig(prompt=prompts["prior"], images=(photo,)),
        preview=PreviewConfig(prompts=(prompts["preview"],)),
        scoring=ScoringConfig(class_prompt=prompts["prior"]),
        output=OutputConfig(folder=tmp_path, name="her"),
    )
    private = replace(config, output=replace(config.output, private=True))
    method = FullFineTune()
    examples = [Example(photo, (prompts["dataset"],))]
    found = {
        each.output.private: json.dumps(
            describe_run(each, method, tiny_model, method.attach(tiny_model, each, []), examples)
        )
        for each in (config, private)
    }
    for text in (*prompts.values(), photo.name, hashlib.sha256(b"pixels").hexdigest()):
        assert text in found[False]
        assert text not in found[True]


def test_metadata_says_which_losses_min_snr_weights(tiny_model, tmp_path):
    config = TrainingConfig(
        base=tiny_model.path,
        dataset=DatasetConfig(photos=(tmp_path,), prompt="a dog"),
        min_snr_gamma=5,
    )
    trainable = FullFineTune().attach(tiny_model, config, [])
    described = describe_run(config, FullFineTune(), tiny_model, trainable, [])
    assert described["ss_min_snr_gamma"] == "5"
    assert described["dreambooth.min_snr"] == "photos and class images"
    plain = describe_run(
        replace(config, min_snr_gamma=0.0), FullFineTune(), tiny_model, trainable, []
    )
    assert "dreambooth.min_snr" not in plain


def test_metadata_says_how_strongly_weights_were_pulled_back(tiny_model, tmp_path):
    config = TrainingConfig(
        base=tiny_model.path, dataset=DatasetConfig(photos=(tmp_path,), prompt="a dog")
    )
    trainable = FullFineTune().attach(tiny_model, config, [])
    described = [
        describe_run(each, FullFineTune(), tiny_model, trainable, [])
        for each in (config, config.replace({"optimizer": {"anchor": 2.5}}))
    ]
    assert [each.get("dreambooth.anchor") for each in described] == [None, "2.5"]


def test_progress_contains_the_losses_and_times():
    report = StepReport(
        step=1, total_steps=1, loss=0.125, instance_loss=0.125, prior_loss=None,
        learning_rates={}, grad_norm=1.0, steps_per_second=1.0, seconds_left=0.0,
        peak_megabytes=1.0, skipped_steps=3,
    )  # fmt: skip
    started = datetime(2024, 5, 1, tzinfo=timezone.utc)
    progress = describe_progress([report], started)
    assert progress["ss_steps"] == "1"
    assert json.loads(progress["dreambooth.losses"]) == [0.125]
    assert progress["dreambooth.skipped_steps"] == "3"
    assert float(progress["ss_training_started_at"]) == started.timestamp()
    assert datetime.fromisoformat(progress["modelspec.date"]) > started
