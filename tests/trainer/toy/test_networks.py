"""Adjustments of the embedded model's networks after training."""

import pytest
import torch

from trainer.families.tokenizer import ClipTokenizer
from trainer.toy.lessons import named_looks
from trainer.toy.networks import build_vae, fill_unknown_words, fold_latent_scale


@torch.no_grad()
def test_folding_the_scale_normalises_the_latents_and_keeps_the_images():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = build_vae().eval()
        pixels = torch.rand(4, 3, 64, 64) * 2 - 1
    latents = vae.encode(pixels).latent_dist
    images = vae.decode(latents.mean).sample
    center, scale = latents.mean.mean((0, 2, 3)), latents.mean.std((0, 2, 3))
    fold_latent_scale(vae, center, scale)
    folded = vae.encode(pixels).latent_dist
    expected = (latents.mean - center.view(1, -1, 1, 1)) / scale.view(1, -1, 1, 1)
    torch.testing.assert_close(folded.mean * 0.18215, expected, atol=1e-4, rtol=1e-4)
    std = latents.std / scale.view(1, -1, 1, 1)
    torch.testing.assert_close(folded.std * 0.18215, std, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(vae.decode(folded.mean).sample, images, atol=1e-4, rtol=1e-4)


def test_unknown_words_get_embeddings_like_the_names_and_known_ones_stay():
    tokenizer, generator = ClipTokenizer(), torch.Generator().manual_seed(0)
    embeddings = torch.randn(49408, 8, generator=generator)
    names = [tokenizer.token_id(f"{name}</w>") for name in named_looks()]
    embeddings[names] = 3 + 0.5 * torch.randn(len(names), 8, generator=generator)
    before = embeddings.clone()
    fill_unknown_words(embeddings)
    known = [tokenizer.token_id(word) for word in ("cup</w>", "red</w>", "<|endoftext|>")]
    assert torch.equal(embeddings[[*known, *names]], before[[*known, *names]])
    unknown = embeddings[1000:2000]
    assert unknown.mean().item() == pytest.approx(3, abs=0.1)
    assert unknown.std(dim=0).mean().item() == pytest.approx(0.5, abs=0.1)
