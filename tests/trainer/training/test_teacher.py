"""The teacher's answers against those of the same model loaded anew, and what they change."""

import copy

import pytest
import torch

from tests.trainer.training.sessions import begin
from trainer import families, precision, weights
from trainer.families.networks import NumberFormats
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.noise import squared_errors
from trainer.settings.config import PriorConfig

CPU = torch.device("cpu")
BOTH = FullFineTune(train_text_encoder=True)
DORA = LoRA(rank=2, dora=True, train_text_encoder=True, dropout=0.3)
LEAN = {"weights": "24 bit", "precision": "bf16", "gradient_release": True}
TAUGHT = PriorConfig(teacher_weight=0.7, prompt="a dog")
KINDS = {
    "all weights": (BOTH, {}),
    "U-Net": (FullFineTune(), {"channels_last": True, "gradient_checkpointing": True}),
    "fp16": (BOTH, {"precision": "fp16"}),
    "24 bit": (BOTH, LEAN),
    "DoRA": (DORA, {}),
    "DoRA in bf16": (DORA, {"precision": "bf16", "gradient_checkpointing": True}),
}


@pytest.fixture
def start(tiny_checkpoint):
    """Begins a session on a newly loaded model."""

    def start(kind: str = "all weights", **changes):
        method, settings = KINDS[kind]
        settings = {"batch_size": 2, "prior": TAUGHT, **settings, **changes}
        rate = {"optimizer": {"learning_rate": 1e-2}}
        return begin(families.load(tiny_checkpoint, CPU), method, **rate, **settings)

    return start


def upcoming(session):
    """The next batch of a session, without drawing it, and its noisy latents."""
    (batch,) = next(copy.deepcopy(session.batches))
    noise = session.model.noise
    return batch, noise.add_noise(batch.latents, batch.noise, batch.times)


@torch.no_grad()
def answers(model, name: str, batch, noisy_latents):
    """What a model answers to a batch's prompts."""
    with precision.autocast(name, CPU):
        text = model.with_framings(model.encode_captions(batch.captions), batch.framings)
        return model.predict(noisy_latents, batch.times, text)


@pytest.mark.parametrize("kind", KINDS)
def test_the_teacher_answers_as_the_model_did_before_training(start, tiny_checkpoint, kind):
    session = start(kind)
    name = session.config.precision
    untrained = families.load(tiny_checkpoint, CPU, formats=NumberFormats(name))
    for _ in range(3):
        while session.step() is None:
            pass
    batch, noisy = upcoming(session)
    assert (batch.num_taught, batch.captions[2:]) == (2, ["a dog", "a dog"])
    zeros = torch.zeros_like(noisy)
    with precision.autocast(name, CPU):
        targets = session._teacher.with_answers(zeros, batch, noisy)
    expected = answers(untrained, name, batch, noisy).float()
    assert torch.equal(targets[:2], zeros[:2])
    tolerance = {"fp32": 1e-5}.get(name, 2e-2)
    torch.testing.assert_close(targets[2:], expected[2:], atol=tolerance, rtol=0)
    trained = answers(session.model, name, batch, noisy).float()
    assert (trained[2:] - expected[2:]).abs().max() > 5 * tolerance


def test_the_loss_is_the_squared_distance_to_the_answers(start, tiny_checkpoint):
    untrained = families.load(tiny_checkpoint, CPU)
    session = start()
    first = session.step()
    assert first.prior_loss < 1e-9
    batch, noisy = upcoming(session)
    errors = squared_errors(answers(session.model, "fp32", batch, noisy),
                            answers(untrained, "fp32", batch, noisy))  # fmt: skip
    plain = squared_errors(answers(session.model, "fp32", batch, noisy), batch.noise)
    report = session.step()
    assert report.prior_loss == pytest.approx(errors[2:].mean().item(), rel=1e-4)
    assert report.instance_loss == pytest.approx(plain[:2].mean().item(), rel=1e-4)
    assert report.loss == pytest.approx(report.instance_loss + 0.7 * report.prior_loss, rel=1e-6)


def test_the_teacher_holds_the_class_back(start):
    """After the same steps, the class prompt is answered more as before."""
    losses = []
    for weight in (1e-6, 3.0):
        session = start(prior=PriorConfig(teacher_weight=weight, prompt="a dog"))
        for _ in range(12):
            report = session.step()
        losses.append(report.prior_loss)
    assert losses[1] < losses[0] / 2


def test_class_images_may_be_trained_on_besides(start):
    both = PriorConfig(weight=1.0, teacher_weight=0.5, prompt="a dog")
    session = start(prior=both)
    alone = start(prior=PriorConfig(weight=1.0, prompt="a dog"))
    assert session.batches.images_per_step == alone.batches.images_per_step + 2
    one, other = session.step(), alone.step()
    assert one.instance_loss == pytest.approx(other.instance_loss, rel=1e-5)
    # Both losses of the class, weighted: the teacher's is 0 before anything is learned.
    assert one.prior_loss == pytest.approx(other.prior_loss / 1.5, rel=1e-5)


def test_adapters_need_no_second_unet(start):
    for kind, expected in (("all weights", 1), ("DoRA", 0)):
        session = start(kind)
        trained = {id(parameter) for parameter in session.model.unet.parameters()}
        own = [
            each for each in vars(session._teacher).values() if isinstance(each, torch.nn.Module)
        ]
        assert len(own) == expected
        assert all(
            id(p) not in trained and not p.requires_grad for n in own for p in n.parameters()
        )


def test_a_copy_in_bf16_takes_two_bytes_per_large_weight(start):
    unet = start("24 bit")._teacher._unet
    kinds = {p.dtype for p in unet.parameters() if weights.is_large(p)}
    assert kinds == {torch.bfloat16}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_weights(start, kind):
    def steps(session, number):
        for _ in range(number):
            while session.step() is None:
                pass

    whole = start(kind, ema=True)
    steps(whole, 2)
    state = copy.deepcopy(whole.state())
    resumed = start(kind, ema=True)
    resumed.load_state(state)
    for session in (whole, resumed):
        steps(session, 3)
    for one, other in zip(whole.parameters, resumed.parameters, strict=True):
        assert torch.equal(weights.value(one), weights.value(other))
    assert whole.reports[-1].prior_loss == resumed.reports[-1].prior_loss > 0
