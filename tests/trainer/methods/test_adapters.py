"""Adapters against LyCORIS, and the masks of their ranks against their formulas."""

import copy
import math

import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.tlora import compute_timestep_mask
from torch import nn
from torch.utils.checkpoint import checkpoint

from trainer.methods.adapters import Adapter, RankMasks, attach

LAYERS = {
    "linear": (lambda: nn.Linear(12, 20), (5, 7, 12)),
    "linear without bias": (lambda: nn.Linear(12, 12, bias=False), (5, 12)),
    "1x1 convolution": (lambda: nn.Conv2d(12, 20, 1), (5, 12, 6, 6)),
    "convolution with stride": (lambda: nn.Conv2d(12, 20, 3, stride=2, padding=1), (5, 12, 6, 6)),
}


def one_step(layer: nn.Module, parameters: list[nn.Parameter], inputs: torch.Tensor):
    """The output before a step, the gradients, and the parameters after it."""
    output = layer(inputs)
    output.square().mean().backward()
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    gradients = [parameter.grad.clone() for parameter in parameters]
    optimizer.step()
    return [output, *gradients, *parameters, layer(inputs)]


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_equals_that_of_lycoris(name, dora):
    """From the same weights, a step has the same outputs, gradients and new weights."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, inputs = build(), torch.randn(shape)
    other = copy.deepcopy(layer)
    adapter = Adapter(layer, 4, 0.5, dora=dora)
    nn.init.normal_(adapter.down, std=0.3)
    nn.init.normal_(adapter.up, std=0.3)
    theirs = LoConModule(
        "layer", other, lora_dim=4, alpha=2, weight_decompose=dora, wd_on_out=False,
        bypass_mode=False,
    )  # fmt: skip
    theirs.lora_down.weight.data.copy_(adapter.down)
    theirs.lora_up.weight.data.copy_(adapter.up)
    theirs.apply_to()
    for module in (layer, other):
        module.requires_grad_(False)
    attach(layer, adapter)
    expected = [theirs.lora_down.weight, theirs.lora_up.weight]
    if dora:
        theirs.dora_scale = nn.Parameter(theirs.dora_scale.detach())
        expected.append(theirs.dora_scale)
    ours = one_step(layer, [*adapter.parameters()], inputs)
    for our, their in zip(ours, one_step(other, expected, inputs), strict=True):
        torch.testing.assert_close(our, their, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_a_new_adapter_changes_nothing(name, dora):
    build, shape = LAYERS[name]
    layer, inputs = build(), torch.randn(shape)
    before = layer(inputs)
    adapter = Adapter(layer, 4, 1.0, dora=dora)
    adapter.reset(torch.Generator().manual_seed(0))
    attach(layer, adapter)
    torch.testing.assert_close(layer(inputs), before)
    assert adapter.down.abs().max() <= 1 / math.sqrt(adapter.down[0].numel())
    assert adapter.down.std() > 0


@pytest.mark.parametrize("name", LAYERS)
def test_in_bf16_dora_has_the_norms_of_the_weights_that_are_computed_with(name):
    build, _ = LAYERS[name]
    torch.manual_seed(0)
    layer = build().to(torch.bfloat16)
    adapter = Adapter(layer, 4, 0.5, dora=True)
    nn.init.normal_(adapter.down, std=0.3)
    nn.init.normal_(adapter.up, std=0.3)
    weight = layer.weight.float()
    changed = weight + 0.5 * (adapter.up.flatten(1) @ adapter.down.flatten(1)).view(weight.shape)
    before, after = (w.transpose(0, 1).flatten(1).norm(dim=1) for w in (weight, changed))
    found = adapter.input_scale(layer).flatten()
    torch.testing.assert_close(found, before / after, atol=5e-3, rtol=0)


class OneLayer(nn.Module):
    """In place of a U-Net: a layer whose inputs are the noisy latents."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6).requires_grad_(False)
        self.adapter = Adapter(self.layer, rank, 1.0, dora=False)
        nn.init.normal_(self.adapter.down)
        nn.init.normal_(self.adapter.up)
        attach(self.layer, self.adapter)
        self.is_checkpointed = False

    def forward(self, noisy_latents, times):
        if self.is_checkpointed:
            return checkpoint(self.layer, noisy_latents, use_reentrant=False)
        return self.layer(noisy_latents)


def masked(rank: int = 8, **options) -> OneLayer:
    options = {"smallest_share": 1.0, "dropout": 0.0, "max_time": 1000.0, "seed": 3, **options}
    network = OneLayer(rank)
    network.register_forward_pre_hook(RankMasks([network.adapter], **options))
    return network


@pytest.mark.parametrize("smallest", [1, 3, 8])
def test_the_ranks_of_a_timestep_are_those_of_t_lora(smallest):
    network, times = masked(smallest_share=smallest / 8), torch.tensor([0, 250, 499, 500, 999])
    network(torch.randn(5, 6), times)
    expected = [compute_timestep_mask(time, 1000, 8, smallest) for time in times.tolist()]
    torch.testing.assert_close(network.adapter.mask, torch.cat(expected))


def test_each_image_has_the_ranks_of_its_own_time():
    network, inputs = masked(smallest_share=0.25), torch.randn(2, 6)
    out = network(inputs, torch.tensor([0, 999]))
    down, up = network.adapter.down, network.adapter.up
    base = torch.nn.functional.linear(inputs, network.layer.weight, network.layer.bias)
    expected = base + torch.stack([up @ (down @ inputs[0]), up[:, :2] @ (down[:2] @ inputs[1])])
    torch.testing.assert_close(out, expected)


def test_dropout_keeps_the_average_and_depends_on_the_batch_and_the_seed_alone():
    network = masked(rank=64, dropout=0.25)
    inputs, times = torch.randn(500, 6), torch.randperm(1000)[:500]

    def mask_of(network, inputs, times):
        network(inputs, times)
        return network.adapter.mask

    mask = mask_of(network, inputs, times)
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert mask.mean().item() == pytest.approx(1, abs=0.02)
    assert len({tuple(row.tolist()) for row in mask}) == 500
    mask_of(network, inputs + 1, times)
    assert torch.equal(mask_of(network, inputs, times), mask)
    assert not torch.equal(mask_of(network, inputs + 1, times), mask)
    assert not torch.equal(mask_of(network, inputs, times.flip(0)), mask)
    other = masked(rank=64, dropout=0.25, seed=4)
    assert not torch.equal(mask_of(other, inputs, times), mask)


def test_all_ranks_are_used_to_draw():
    network, times = masked(smallest_share=0.25, dropout=0.5), torch.tensor([999, 999])
    network(torch.randn(2, 6), times)
    assert network.adapter.mask is not None
    with torch.no_grad():
        network(torch.randn(2, 6), times)
    assert network.adapter.mask is None


def test_recomputed_activations_have_the_same_masks():
    """As with gradient checkpointing."""
    network, gradients = masked(smallest_share=0.25, dropout=0.5), []
    inputs, times = torch.randn(4, 6), torch.tensor([10, 400, 700, 999])
    for network.is_checkpointed in (False, True):
        network(inputs, times).square().sum().backward()
        gradients.append(network.adapter.down.grad)
        network.adapter.down.grad = None
    torch.testing.assert_close(*gradients)
