"""Tokens, placeholders and pooled outputs of the text encoders. Their layers are compared with
transformers' in test_sdxl.py and test_sd2.py."""

import pytest
import torch

from trainer.families.embedding import Embedding

VECTORS = {"clip_l": torch.randn(2, 24), "clip_g": torch.randn(2, 32)}


def test_the_first_encoder_is_filled_up_with_the_end_and_the_second_with_zeros(xl_model):
    first, second = (each.tokenizer.encode(["a dog"])[0].tolist() for each in xl_model.encoders)
    assert first[:4] == second[:4] == [49406, 320, 1929, 49407]
    assert first[4:] == [49407] * 73
    assert second[4:] == [0] * 73


@torch.no_grad()
def test_a_placeholder_has_vectors_of_its_own_in_each_encoder(xl_model):
    xl_model.add_embedding(Embedding("<tok>", VECTORS))
    plain = xl_model.encode_captions(["a dog dog cat"])
    found = xl_model.encode_captions(["a <tok> cat"])
    for encoder, start, end in zip(xl_model.encoders, (0, 24), (24, 56), strict=True):
        vectors = encoder.table(encoder.tokenizer.encode(["a <tok> cat"]))[0, 2:4]
        assert torch.equal(vectors, VECTORS[encoder.name])
        differs = (plain.hidden != found.hidden)[0, :, start:end].any(dim=1)
        assert differs.tolist() == [False] * 2 + [True] * 75  # from the placeholder on
    assert not torch.equal(plain.added["text_embeds"], found.added["text_embeds"])


@torch.no_grad()
def test_the_pooled_output_is_that_of_the_end_also_after_a_placeholder(xl_model):
    """The ids of placeholders are larger than that of the end, by which transformers once looked
    for it."""
    xl_model.add_embedding(Embedding("<tok>", VECTORS))
    second = xl_model.encoders[1]
    ids = second.tokenizer.encode(["a <tok> cat"])
    hidden = second.module.text_model(ids).last_hidden_state
    expected = second.module.text_projection(hidden[0, ids[0].tolist().index(49407)])
    torch.testing.assert_close(
        xl_model.encode_captions(["a <tok> cat"]).added["text_embeds"][0], expected
    )


@pytest.mark.parametrize("missing", ["clip_l", "clip_g"])
def test_an_embedding_for_one_of_two_encoders_is_refused(xl_model, missing):
    vectors = {name: each for name, each in VECTORS.items() if name != missing}
    with pytest.raises(ValueError, match="needs vectors for clip_g and clip_l alone"):
        xl_model.add_embedding(Embedding("<tok>", vectors))


def test_gradients_reach_every_weight_that_is_trained(xl_model):
    """Of the last layer and the final norm of the second encoder through the pooled output; the
    first encoder's are left out."""
    xl_model.text_encoders.requires_grad_(True)
    found = xl_model.encode_captions(["a dog"])
    (found.hidden.square().sum() + found.added["text_embeds"].square().sum()).backward()
    parameters = list(xl_model.text_encoders.named_parameters())
    # A shift of all keys changes no softmax.
    assert [name for name, p in parameters if p.grad is None or not p.grad.any()] == []
