"""The share of a card's peak performance: the operations of a step and what is said of them."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer.training.sessions import begin
from trainer import eight_bit
from trainer.methods.full import FullFineTune
from trainer.methods.lora import LoRA
from trainer.methods.textual_inversion import TextualInversion
from trainer.settings.config import PriorConfig
from trainer.training import speed

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True, "batch_size": 2},
        {"gradient_accumulation": 2, "prior": PriorConfig(weight=1.0, prompt="a dog")},
        {"precision": "bf16"},
    ],
)
def test_counts_the_operations_of_a_step(tiny_model, changes):
    tiny_model.latent_factor = 4  # the latents of `begin` are 8 x 8, its photos 32 x 32
    session = begin(tiny_model, **changes)
    # torch counts attention only if it is computed as matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        session.step()
    computed = counter.get_total_flops()
    before = [weight.clone() for weight in session.parameters]
    # Gradients of the text encoder's output, which the step does not need, are counted too.
    assert computed <= speed.step_flops(session) < 1.02 * computed
    assert all(map(torch.equal, session.parameters, before))
    assert all(weight.grad is None for weight in session.parameters)


def test_a_frozen_unet_has_no_gradients_of_weights(tiny_model):
    trained = speed.step_flops(begin(tiny_model))
    tiny_model.unet.requires_grad_(False)
    method = TextualInversion(placeholder="<tok>", initializer="dog", templates="captions")
    session = begin(tiny_model, method, caption="a <tok>")
    assert speed.step_flops(session) < 0.75 * trained


@pytest.mark.parametrize("is_in_8_bits", [False, True])
def test_the_adapters_of_a_lora_are_counted(tiny_model, is_in_8_bits):
    tiny_model.latent_factor = 4
    if is_in_8_bits:
        for layer in eight_bit.layers(tiny_model.unet).values():
            eight_bit.hold(layer, eight_bit.values(layer), torch.float32)
    session = begin(tiny_model, LoRA(conv_rank=4, dora=True, dropout=0.5))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        session.step()
    computed = counter.get_total_flops()
    assert computed <= speed.step_flops(session) < 1.1 * computed
    assert session.step() is not None


def test_the_text_encoders_are_not_counted(tiny_model):
    alone = speed.step_flops(begin(tiny_model))
    assert speed.step_flops(begin(tiny_model, FullFineTune(train_text_encoder=True))) == alone


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA GeForce RTX 3060", 25.5),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("Tesla T4", 65.0),
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", None),
        ("Some Card", None),
    ],
)
def test_cards_are_known_by_their_whole_names(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert speed.peak_tflops(CUDA) == peak
    assert speed.peak_tflops(CPU) is None


def test_the_share_of_the_peak_is_in_one_sentence(tiny_model, monkeypatch):
    session = begin(tiny_model, precision="bf16")
    monkeypatch.setattr(speed, "peak_tflops", lambda device: 25.5)
    monkeypatch.setattr(speed, "step_flops", lambda session: int(9.64e12))
    assert speed.describe(session) == ""  # before the first step
    session.reports = [replace(session.step(), steps_per_second=1.5)]
    assert speed.describe(session) == (
        "The U-Net computed 9.6 TFLOP per step and 14.5 TFLOPS on average, previews and saving "
        "included: 57% of the card's peak."
    )
    session.config = session.config.replace({"precision": "fp32"})
    assert speed.describe(session) == ""


def test_nothing_is_said_of_an_unknown_card(tiny_model):
    session = begin(tiny_model, precision="bf16")
    session.step()
    assert speed.describe(session) == ""
