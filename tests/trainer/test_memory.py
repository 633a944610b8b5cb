"""Runs that run out of memory: what they report, what they keep, and how they resume.

The errors are real ones: `too_much` allocates more than any address space holds."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trainer.families.sd1 import SD1
from trainer.loop import train
from trainer.memory import OUT_OF_MEMORY, explained, training_advice
from trainer.methods.full import FullFineTune
from trainer.observer import Observer
from trainer.settings.config import (
    OptimizerConfig,
    PreviewConfig,
    PriorConfig,
    SamplingConfig,
    TrainingConfig,
)

CPU = torch.device("cpu")
DRAWING = SamplingConfig(steps=1, guidance_scale=1, batch_size=2)


def too_much() -> torch.Tensor:
    return torch.empty(1 << 46)


@pytest.fixture
def config(one_photo_config) -> TrainingConfig:
    return replace(one_photo_config, steps=4)


class Watching(Observer):
    def __init__(self) -> None:
        self.steps: list[int] = []
        self.previews: list[int] = []

    def on_step(self, report):
        self.steps.append(report.step)

    def on_preview(self, step, images):
        self.previews.append(step)


def run(config: TrainingConfig, runs: Path | None = None, observer: Observer | None = None):
    return train(config, FullFineTune(), device=CPU, runs=runs, observer=observer)


def fail_at(monkeypatch, method: str, calls: set[int]) -> None:
    """Make these calls of a method of the model, counted from 1, run out of memory."""
    whole, count = getattr(SD1, method), [0]

    def failing(*arguments):
        count[0] += 1
        if count[0] in calls:
            too_much()
        return whole(*arguments)

    monkeypatch.setattr(SD1, method, failing)


def test_out_of_memory_at_a_step_says_what_to_change(config, monkeypatch):
    fail_at(monkeypatch, "predict", {1})
    with pytest.raises(MemoryError) as caught:
        run(replace(config, batch_size=3))
    assert str(caught.value) == (
        "Out of memory at step 1. To use less, most effective first: switch on "
        "gradient_checkpointing; set batch_size to 1 and gradient_accumulation to 3; set "
        "optimizer.name to AdamW8bit; switch on gradient_release; set precision to bf16; set "
        "weights to 24 bit; lower dataset.resolution (now 16). The run can resume with the first "
        "two changed; changing the others starts a new run."
    )


def test_out_of_memory_for_the_ema_says_what_to_change(config, monkeypatch):
    monkeypatch.setattr("trainer.training.session.EMA", lambda *_: too_much())
    with pytest.raises(MemoryError) as caught:
        run(replace(config, ema=True))
    assert str(caught.value).startswith(
        "Out of memory while training was set up. To use less, most effective first: switch on "
        "gradient_checkpointing; set optimizer.name to AdamW8bit; switch on gradient_release; "
        "switch off ema; "
    )


def test_a_run_out_of_memory_resumes_with_settings_that_need_less(
    config, tmp_path, monkeypatch, caplog
):
    whole = run(config)
    with monkeypatch.context() as patch:
        fail_at(patch, "predict", {3})
        with pytest.raises(MemoryError, match="^Out of memory at step 3"):
            run(config, tmp_path / "runs")
    assert caplog.messages == ["Stopped after step 2. Run the same again to resume from there."]
    watching = Watching()
    result = run(replace(config, gradient_checkpointing=True), tmp_path / "runs", watching)
    assert watching.steps == [3, 4]
    losses = [[report.loss for report in each.reports] for each in (result, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("ema", [False, True])
def test_previews_out_of_memory_are_skipped_and_change_nothing(
    config, tmp_path, monkeypatch, caplog, ema
):
    preview = PreviewConfig(prompts=("a dog", "a cat"), every=1, sampling=DRAWING)
    config = replace(config, ema=ema)
    whole = run(config)
    caplog.set_level(logging.WARNING)
    fail_at(monkeypatch, "decode_latents", {3, 6})  # of the previews of steps 1 and 3
    watching = Watching()
    result = run(replace(config, preview=preview), tmp_path / "runs", watching)
    assert watching.previews == [0, 2, 4]
    assert caplog.messages == [
        f"The previews of step {step} are left out. Out of memory while 2 images of 16x16 pixels "
        "were drawn at once. Draw fewer at once (batch_size), or smaller ones."
        for step in (1, 3)
    ]
    tensors, others = load_file(result.checkpoint), load_file(whole.checkpoint)
    assert all(torch.equal(tensors[name], others[name]) for name in tensors)


def test_out_of_memory_while_encoding_images_says_what_to_change(config, monkeypatch):
    fail_at(monkeypatch, "encode_pixels", {1})
    with pytest.raises(MemoryError) as caught:
        run(config)
    assert str(caught.value) == (
        "Out of memory while the images were encoded. Lower dataset.resolution (now 16)."
    )


def test_class_images_made_before_running_out_of_memory_are_kept(config, tmp_path, monkeypatch):
    prior = PriorConfig(weight=1, prompt="a photo of a dog", num_images=4, sampling=DRAWING)
    config = replace(config, prior=prior)
    with monkeypatch.context() as patch:
        fail_at(patch, "decode_latents", {3})
        with pytest.raises(MemoryError, match="^Out of memory while 2 images of 16x16 pixels "):
            run(config, tmp_path / "runs")
    made = {path: path.stat().st_mtime_ns for path in config.output.folder.rglob("*.png")}
    assert len(made) == 2
    run(config, tmp_path / "runs")
    assert all(path.stat().st_mtime_ns == before for path, before in made.items())
    assert len(list(config.output.folder.rglob("*.png"))) == 4


def test_out_of_memory_while_saving_a_state_is_only_a_warning(
    config, tmp_path, monkeypatch, caplog
):
    def failing(*arguments):
        raise MemoryError("what Python says")

    monkeypatch.setattr("trainer.storage.states.save", failing)
    run(replace(config, output=replace(config.output, state_every=3)), tmp_path / "runs")
    assert caplog.messages == ["Could not save the state of step 3: what Python says"]


def test_advice_leaves_out_what_is_set_already(config):
    frugal = replace(
        config,
        batch_size=4,
        gradient_checkpointing=True,
        precision="bf16",
        optimizer=OptimizerConfig(name="AdamW8bit"),
        weights="24 bit",
        gradient_release=True,
        offload=True,
    )
    assert training_advice(frugal, trains_text_encoder=False, resolution=512) == (
        "To use less, most effective first: lower dataset.resolution (now 512)."
    )
    lavish = replace(config, gradient_checkpointing=True, batch_size=2, ema=True)
    lavish = replace(lavish, gradient_accumulation=3)
    assert training_advice(lavish, trains_text_encoder=True, resolution=512) == (
        "To use less, most effective first: set batch_size to 1 and gradient_accumulation to 6; "
        "set optimizer.name to AdamW8bit; switch on gradient_release; switch off ema; set "
        "precision to bf16; set weights to 24 bit; switch off train_text_encoder, so that captions "
        "are encoded only once; lower dataset.resolution (now 512). The run can resume with the "
        "first changed; changing the others starts a new run."
    )


def test_advice_for_a_lora_leaves_out_what_is_for_trained_weights(config):
    advice = training_advice(
        replace(config, batch_size=1), trains_text_encoder=True, resolution=512, trained="lora"
    )
    assert advice == (
        "To use less, most effective first: switch on gradient_checkpointing; set precision to "
        "bf16; set frozen_weights to 8 bit; set optimizer.name to AdamW8bit; switch off "
        "train_text_encoder, so that captions are encoded only once; lower rank; lower "
        "dataset.resolution (now 512). The run can resume with the first changed; changing the "
        "others starts a new run."
    )
    lean = {"precision": "bf16", "frozen_weights": "8 bit", "gradient_checkpointing": True,
            "batch_size": 1, "optimizer": {"name": "AdamW8bit"}}  # fmt: skip
    options = {"trains_text_encoder": False, "resolution": 512, "trained": "embedding"}
    assert training_advice(config.replace(lean), **options) == (
        "To use less, most effective first: lower dataset.resolution (now 512)."
    )


def test_with_released_gradients_larger_batches_are_advised(config):
    """Accumulating holds all gradients: 2 to 4 bytes per trained weight, which is more than the
    activations of several photos with gradient checkpointing."""
    released = replace(config, gradient_release=True, batch_size=1, gradient_accumulation=4)
    assert training_advice(released, trains_text_encoder=False, resolution=512).startswith(
        "To use less, most effective first: switch on gradient_checkpointing; set batch_size to 4 "
        "and gradient_accumulation to 1; switch on offload; "
    )


def test_bf16_is_not_advised_on_devices_that_refuse_it(config, monkeypatch):
    monkeypatch.setattr("trainer.memory.computes_in_bf16", lambda device: device.type != "cuda")
    options = {"trains_text_encoder": False, "resolution": 512}
    advice = training_advice(config, device=torch.device("cuda"), **options)
    assert "; set precision to fp16; " in advice
    assert "gradient_release" not in advice, "fp16 cannot release gradients"
    assert "; set precision to bf16; " in training_advice(config, **options)


def test_a_cuda_error_stays_a_cuda_error():
    """ComfyUI recognizes its class and frees GPU memory."""
    with (
        pytest.raises(torch.cuda.OutOfMemoryError) as caught,
        explained("at step 1", lambda: "Take less."),
    ):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert str(caught.value) == "Out of memory at step 1. Take less."
    assert isinstance(caught.value, OUT_OF_MEMORY)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory",
        "MPS backend out of memory (MPS allocated: 9.05 GB)",
        "std::bad_alloc",
    ],
)
def test_recognizes_the_out_of_memory_errors_of_libraries(said):
    with (
        pytest.raises(MemoryError, match="^Out of memory at step 1. Take less.$"),
        explained("at step 1", lambda: "Take less."),
    ):
        raise RuntimeError(said)


def test_other_errors_are_unchanged():
    with pytest.raises(RuntimeError, match="^shapes do not fit$"), explained("now", str):
        raise RuntimeError("shapes do not fit")
