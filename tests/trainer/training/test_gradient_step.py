"""Clipping, learning rates, weight decay and fp16 overflow, as the optimizer receives them."""

import math

import pytest
import torch

from tests.trainer.training.sessions import begin, overflow
from trainer import families
from trainer.families.embedding import Embedding
from trainer.methods.full import FullFineTune
from trainer.optimization.optimizers import OPTIMIZERS


def test_gradients_that_keep_overflowing_fp16_end_the_run(tiny_model):
    session = begin(tiny_model, precision="fp16")
    before = tiny_model.unet.conv_out.weight.detach().clone()
    overflow(tiny_model)
    num_tries = int(math.log2(session.gradient_step.scaler.get_scale())) + 1
    assert [session.step() for _ in range(num_tries - 1)] == [None] * (num_tries - 1)
    with pytest.raises(FloatingPointError) as caught:
        session.step()
    assert str(caught.value) == (
        f"In fp16 the gradients of step 1 overflowed {num_tries} times in a row. Choose precision "
        "bf16 or fp32, or lower optimizer.learning_rate (now 0.0001)."
    )
    assert torch.equal(tiny_model.unet.conv_out.weight, before)


def test_the_loss_scale_is_resumed(tiny_model, tiny_checkpoint):
    session = begin(tiny_model, precision="fp16")
    session.step()
    session.gradient_step.scaler.update(new_scale=512.0)
    other = begin(families.load(tiny_checkpoint, torch.device("cpu")), precision="fp16")
    other.load_state(session.state())
    assert other.gradient_step.scaler.get_scale() == 512
    assert other.gradient_step.scaler.state_dict() == session.gradient_step.scaler.state_dict()
    assert other.step().loss == session.step().loss


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("limit", [0.0, 1e-3, 1e6])
def test_gradients_are_clipped_to_the_limit(tiny_model, precision, limit):
    """Measured before the optimizer runs, because AdamW's step hardly depends on their norm."""
    session = begin(tiny_model, precision=precision, optimizer={"max_grad_norm": limit})
    received = []

    def measure(*_: object) -> None:
        received.append(math.hypot(*(p.grad.norm().item() for p in session.parameters)))

    session.gradient_step.optimizer.register_step_pre_hook(measure)
    found = session.step().grad_norm
    assert 0.01 < found < 1e3, "the limits must lie on both sides"
    assert received == [pytest.approx(1e-3 if limit == 1e-3 else found, rel=1e-3)]


def test_each_part_has_its_own_learning_rate_until_it_stops(tiny_model):
    method = FullFineTune(
        train_text_encoder=True, text_encoder_learning_rate=3e-4, text_encoder_stop_step=4
    )
    rate = {"learning_rate": 1e-3, "lr_schedule": "linear", "warmup_steps": 2}
    session = begin(tiny_model, method, steps=6, optimizer=rate)
    used, lengths = [], []

    def look(*_: object) -> None:
        used.append([group["lr"] for group in session.gradient_step.optimizer.param_groups])
        lengths.append(
            [
                math.hypot(*(p.grad.norm().item() for p in part.parameters if p.grad is not None))
                for part in session.trainable.parts
            ]
        )

    session.gradient_step.optimizer.register_step_pre_hook(look)
    reports = [session.step() for _ in range(6)]
    shares = [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]
    unet = [1e-3 * share for share in shares]
    text_encoder = [*(3e-4 * share for share in shares[:4]), 0, 0]
    expected = list(zip(unet, text_encoder, strict=True))
    assert used == [pytest.approx(rates) for rates in expected]
    reported = [tuple(report.learning_rates.values()) for report in reports]
    assert reported == [pytest.approx(rates) for rates in expected]
    # A stopped part has no gradients that would count in the norm.
    assert [length[1] > 0 for length in lengths] == [True] * 4 + [False] * 2


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weight_decay_applies_to_weights_but_not_to_embeddings(tiny_model, name):
    """With zero gradients only the decay acts: it shrinks weights by learning rate times decay."""
    tiny_model.add_embedding(Embedding("<tok>", {"clip_l": torch.ones(1, 24)}))
    session = begin(
        tiny_model,
        FullFineTune(train_embedding=True),
        caption="a photo of <tok>",
        optimizer={"name": name, "learning_rate": 0.1, "weight_decay": 0.5},
    )
    kernel = tiny_model.unet.conv_in.weight
    before = kernel.detach().clone()
    for parameter in session.parameters:
        parameter.grad = torch.zeros_like(parameter)
    session.gradient_step.update_weights(1)
    # Prodigy estimates its learning rate from gradients, and has seen none yet.
    shrunk = before * (1 if name == "Prodigy" else 1 - 0.1 * 0.5)
    torch.testing.assert_close(kernel.detach(), shrunk)
    (vectors,) = tiny_model.learned_vectors["<tok>"].values()
    assert torch.equal(vectors.detach(), torch.ones(1, 24))


def test_embeddings_keep_32_bit_states_under_8_bit_adamw(tiny_model):
    method = FullFineTune(train_text_encoder=True)
    session = begin(tiny_model, method, optimizer={"name": "AdamW8bit"})
    session.step()
    states = session.gradient_step.optimizer.state
    (table,) = tiny_model.token_tables().values()
    assert states[table.weight]["state1"].dtype == torch.float32
    assert states[tiny_model.unet.mid_block.resnets[0].conv1.weight]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("name", ["AdamW", "Adafactor", "Lion"])
@pytest.mark.parametrize("was_on", [True, False])
def test_channels_last_may_be_switched_when_a_run_is_resumed(tiny_checkpoint, name, was_on):
    """Fused kernels read weights and their states in the order of memory."""
    results = []
    for switch in (was_on, not was_on):
        model = families.load(tiny_checkpoint, torch.device("cpu"))
        session = begin(model, channels_last=was_on, optimizer={"name": name})
        session.step()
        other = families.load(tiny_checkpoint, torch.device("cpu"))
        resumed = begin(other, channels_last=switch, optimizer={"name": name})
        resumed.load_state(session.state())
        resumed.step()
        resumed.step()
        kernels = [weight.detach() for weight in resumed.parameters if weight.ndim == 4]
        results.append(torch.cat([kernel.flatten() for kernel in kernels]))
    # Rounding decides the sign of some gradients near 0. In the wrong order, most states would
    # belong to another weight, which changes the step by about the learning rate of 1e-4.
    kept, switched = results
    assert ((kept - switched).abs() > 2e-5).float().mean() < 0.02
