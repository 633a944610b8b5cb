"""The parts of the recipe that can be tested without long training."""

import copy

import torch
from torch import nn

from trainer.toy.recipe import optimize, stages


def test_optimizing_lowers_the_loss_and_keeps_the_average():
    layer = nn.Linear(4, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    targets = inputs.sum(dim=1, keepdim=True)
    losses, kept = [], []

    def loss_at(step):
        loss = (layer(inputs) - targets).square().mean()
        losses.append(loss.item())
        return loss

    def keep(averaged):
        kept.append((len(losses), copy.deepcopy(averaged[0].weight.detach())))

    optimize([layer], loss_at, 600, 0.05, keep)
    assert losses[-1] < 0.01 * losses[0]
    assert [step for step, _ in kept] == [500, 600]
    torch.testing.assert_close(kept[-1][1], torch.ones(1, 4), atol=0.05, rtol=0)
    assert not torch.equal(kept[-1][1], layer.weight)


def test_every_stage_makes_its_own_file():
    results = [result for result, _ in stages()]
    assert len(set(results)) == len(results)
    assert results.index("vae.pt") < results.index("latents.pt") < results.index("denoiser.pt")
