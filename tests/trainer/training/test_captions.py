"""When captions are encoded, and that each gets its own encoding."""

import pytest
import torch

from tests.trainer.training.sessions import FRAMING
from trainer.families.base import Framing
from trainer.training.captions import CaptionEncoder


def test_a_frozen_text_encoder_encodes_each_caption_once(tiny_model):
    encoded = []
    encode = tiny_model.encode_captions
    tiny_model.encode_captions = lambda captions: encoded.extend(captions) or encode(captions)
    encoder = CaptionEncoder(tiny_model, frozen=True)
    for _ in range(3):
        given = encoder.encode(["a dog", "a cat", "a dog"], [FRAMING] * 3)
    assert sorted(encoded) == ["a cat", "a dog"]
    fresh = encode(["a dog", "a cat", "a dog"])
    torch.testing.assert_close(given.hidden, fresh.hidden)


@pytest.mark.parametrize("frozen", [True, False])
def test_each_caption_has_its_own_encoding_in_every_batch(tiny_model, frozen):
    encoder = CaptionEncoder(tiny_model, frozen=frozen)
    for captions in (["a dog", "a cat"], ["a cat", "a bird", "a cat"], ["a bird", "a dog"]):
        framings = [Framing((32 + n, 32), (n, 0), (32, 32)) for n in range(len(captions))]
        given = encoder.encode(captions, framings)
        fresh = tiny_model.encode_captions(captions)
        torch.testing.assert_close(given.hidden, fresh.hidden)


def test_a_trained_text_encoder_encodes_at_every_step(tiny_model):
    encoder = CaptionEncoder(tiny_model, frozen=False)
    tiny_model.text_encoders.requires_grad_(True)
    before = encoder.encode(["a dog"], [FRAMING]).hidden
    assert before.requires_grad
    with torch.no_grad():
        # Different for each element, because LayerNorm removes a common offset.
        tiny_model.token_tables()["clip_l"].weight.add_(torch.linspace(-1, 1, 24))
    after = encoder.encode(["a dog"], [FRAMING]).hidden
    assert (after - before).norm() > 0.1 * before.norm()
