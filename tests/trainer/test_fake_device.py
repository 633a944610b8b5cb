"""The fake device refuses what CUDA refuses, allows what CUDA allows, and computes what the CPU
computes. `tests/gpu/test_rules.py` runs the same tests on CUDA."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.trainer.fake_device import CPU, DEVICE, fake_device

IDS = torch.tensor([2, 0])
NUMBER, ROW = torch.tensor(2.0), torch.tensor([1.0, 2.0, 3.0])
SQUARE = torch.arange(9.0).view(3, 3)
IMAGE, KERNEL = torch.ones(1, 2, 4, 4), torch.ones(3, 2, 3, 3)
HEADS = torch.ones(1, 2, 3, 4)


@pytest.fixture
def device() -> Iterator[torch.device]:
    with fake_device():
        yield DEVICE


MESSAGES = "device|should be the same|indices should be|generator"
"""Parts of the messages. A convolution's message compares types instead of devices."""
REFUSED: dict[str, Callable[[torch.device], object]] = {
    "matmul": lambda device: SQUARE.to(device) @ SQUARE,
    "linear": lambda device: F.linear(ROW, SQUARE.to(device)),
    "convolution": lambda device: F.conv2d(IMAGE.to(device), KERNEL),
    "attention": lambda device: F.scaled_dot_product_attention(HEADS.to(device), HEADS, HEADS),
    "norm": lambda device: F.layer_norm(SQUARE.to(device), (3,), ROW),
    "add": lambda device: SQUARE.to(device) + ROW,
    "add to the CPU": lambda device: ROW.clone().add_(ROW.to(device)),
    "a number from the device": lambda device: ROW * NUMBER.to(device),
    "where": lambda device: torch.where(ROW > 1, ROW.to(device), 0.0),
    "cat": lambda device: torch.cat([ROW.to(device), ROW]),
    "stack of numbers": lambda device: torch.stack([NUMBER.to(device), NUMBER]),
    "lerp of lists": lambda device: torch._foreach_lerp_([ROW.clone()], [ROW.to(device)], 0.5),
    "error": lambda device: F.mse_loss(ROW.to(device), ROW),
    "out": lambda device: torch.add(ROW.to(device), 1, out=torch.empty(3)),
    "indices of a table on the CPU": lambda device: ROW[IDS.to(device)],
    "mask of a tensor on the CPU": lambda device: ROW[(ROW > 1).to(device)],
    "values put": lambda device: SQUARE.clone().to(device).index_put_((IDS,), SQUARE[:2]),
    "embedding": lambda device: F.embedding(IDS, SQUARE.to(device)),
    "embedding on the CPU": lambda device: F.embedding(IDS.to(device), SQUARE),
    "gather": lambda device: ROW.to(device).gather(0, IDS),
    "index_select": lambda device: ROW.to(device).index_select(0, IDS),
    "quantile": lambda device: ROW.to(device).quantile(torch.tensor([0.1, 0.9])),
    "noise of the CPU's generator": lambda device: torch.randn(
        3, device=device, generator=torch.Generator()
    ),
    "the CPU's generator in place": lambda device: torch.empty(3, device=device).normal_(
        generator=torch.Generator()
    ),
    "noise on the CPU": lambda device: torch.randn(3, generator=torch.Generator(device)),
}
ALLOWED: dict[str, Callable[[torch.device], Tensor]] = {
    "a number": lambda device: SQUARE.to(device) * 2,
    "a number from the CPU": lambda device: ROW.to(device) * NUMBER,
    "a number in place": lambda device: ROW.clone().to(device).div_(NUMBER),
    "where": lambda device: torch.where(ROW.to(device) > 1, NUMBER, ROW.to(device)),
    "fill": lambda device: ROW.clone().to(device).fill_(NUMBER),
    "masked fill": lambda device: ROW.to(device).masked_fill(ROW.to(device) > 1, NUMBER),
    "indices from the CPU": lambda device: SQUARE.to(device)[IDS],
    "mask from the CPU": lambda device: ROW.to(device)[ROW > 1],
    "list": lambda device: SQUARE.to(device)[[2, 0]],
    "list and slice": lambda device: SQUARE.to(device)[:, [2, 0]],
    "mask": lambda device: ROW.to(device)[ROW.to(device) > 1],
    "number on the device as an index": lambda device: SQUARE[IDS.to(device)[0]].to(device),
    "a value put": lambda device: SQUARE.clone().to(device).index_put_((IDS,), NUMBER),
    "copy to the device": lambda device: torch.zeros(3, device=device).copy_(ROW),
    "copy from the device": lambda device: torch.zeros(3).copy_(ROW.to(device)).to(device),
    "tensor": lambda device: torch.tensor([1.0, 2.0], device=device) + 1,
    "tensor like": lambda device: ROW.to(device).new_tensor([0.5]) + 1,
    "range": lambda device: torch.arange(3, device=device) + 1,
    "zeros like": lambda device: torch.zeros_like(ROW, device=device) + 1,
    "new": lambda device: ROW.to(device).new_ones(2) + 1,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_to_mix_devices(device, name):
    with pytest.raises(RuntimeError, match=MESSAGES):
        REFUSED[name](device)
    if "generator" not in name and name != "noise on the CPU":
        REFUSED[name](CPU)


@pytest.mark.parametrize("name", ALLOWED)
def test_allows_what_cuda_allows_and_computes_the_same_numbers(device, name):
    made = ALLOWED[name](device)
    assert made.device.type == device.type
    assert torch.equal(made.cpu(), ALLOWED[name](CPU))


def test_generators_of_the_device_draw_on_it(device):
    def draw() -> Tensor:
        generator = torch.Generator(device).manual_seed(5)
        assert generator.device.type == device.type
        return torch.randn(4, device=device, generator=generator)

    drawn = draw()
    assert drawn.device.type == device.type
    assert torch.equal(drawn.cpu(), draw().cpu())
    assert drawn.cpu().unique().numel() == 4


def test_numpy_needs_a_copy_on_the_cpu(device):
    for ask in (Tensor.numpy, np.asarray):
        with pytest.raises((TypeError, RuntimeError), match="numpy"):
            ask(ROW.to(device))
    assert ROW.to(device).cpu().numpy().tolist() == [1, 2, 3]


def test_values_can_be_read_on_the_cpu(device):
    row = ROW.to(device)
    assert row.tolist() == [1, 2, 3]
    assert (row[1].item(), float(row[2]), int(row[0]), f"{row[1]:.1f}") == (2, 3, 1, "2.0")
    assert bool(row.isfinite().all())
    assert not (row / 0).isfinite().any()
    assert torch.equal(row, row.clone())
    assert row.nonzero().tolist() == [[0], [1], [2]]


def test_views_and_changes_in_place(device):
    square = SQUARE.clone().to(device)
    assert square.zero_().copy_(SQUARE) is square
    square[0] += 10
    square[:, 1][1:].zero_()
    assert square.tolist() == [[10, 11, 12], [3, 0, 5], [6, 0, 8]]
    one, other = nn.Parameter(ROW.to(device)), nn.Parameter(-ROW.to(device))
    one.data, other.data = other.data, one.data
    one.data.mul_(2)
    assert (one.tolist(), other.tolist()) == ([-2, -4, -6], [1, 2, 3])


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 1))
    module.register_buffer("positions", torch.arange(3))
    return module


def test_a_module_moves_to_the_device_and_back(device):
    module, before = network(), network().state_dict()
    parameters = list(module.parameters())
    for place in (device, CPU, device):
        module.to(place)
        state = module.state_dict()
        assert {tensor.device.type for tensor in state.values()} == {place.type}
        assert all(torch.equal(state[name].cpu(), before[name]) for name in before)
    # An optimizer still holds the right parameters.
    assert all(p is q for p, q in zip(module.parameters(), parameters, strict=True))
    module.to("cpu")
    assert module.state_dict()["0.weight"].numpy().shape == (4, 3)
    assert module(SQUARE).device == CPU


def test_gradients_and_optimizer_steps_match_those_of_the_cpu(device):
    def weights(place: torch.device) -> list[Tensor]:
        module = network().to(place)
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(SQUARE.to(place)).square().mean().backward()
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
        return [parameter.detach().cpu() for parameter in module.parameters()]

    torch.testing.assert_close(weights(device), weights(CPU))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_autocast(device, dtype, is_checkpointed):
    module = network().to(device)
    assert torch.amp.is_autocast_available(device.type)
    with torch.autocast(device.type, dtype=dtype):
        assert torch.is_autocast_enabled(device.type)
        assert torch.get_autocast_dtype(device.type) == dtype
        if is_checkpointed:
            made = torch.utils.checkpoint.checkpoint(module, SQUARE.to(device), use_reentrant=False)
        else:
            made = module(SQUARE.to(device))
        assert module[1](module[0](SQUARE.to(device))).dtype == torch.float32
        assert (made @ made.mT).dtype == dtype
        assert (made.float() @ made.float().mT).dtype == dtype
        assert (made.double() @ made.double().mT).dtype == torch.float64
        with torch.autocast(device.type, enabled=False):
            assert (made.float() @ made.float().mT).dtype == torch.float32
    made.float().sum().backward()
    assert {parameter.grad.dtype for parameter in module.parameters()} == {torch.float32}
    assert module(SQUARE.to(device)).dtype == torch.float32


def test_fp16_gradients_are_scaled_and_steps_that_overflow_are_skipped(device):
    module = network().to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device.type)
    before = module[0].weight.tolist()
    for factor, scale in ((float("inf"), 2.0**15), (1.0, 2.0**15)):
        scaler.scale(module(SQUARE.to(device)).mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert scaler.get_scale() == scale
        assert (module[0].weight.tolist() == before) == (factor != 1.0)


def test_saved_files_hold_the_numbers(device, tmp_path):
    torch.save({"row": nn.Parameter(ROW.to(device))}, tmp_path / "state.pt")
    read = torch.load(tmp_path / "state.pt", map_location="cpu", weights_only=True)
    assert read["row"].device == CPU
    assert read["row"].tolist() == [1, 2, 3]


def test_counts_the_operations_that_it_computes():
    with fake_device() as computed:
        SQUARE @ SQUARE
        assert computed[torch.ops.aten.mm.default] == 0
        SQUARE.to(DEVICE) @ SQUARE.to(DEVICE)
    assert computed[torch.ops.aten.mm.default] == 1


def test_torch_is_unchanged_afterwards():
    def changed() -> list[object]:
        return [
            torch.Generator, torch.autocast, torch.is_autocast_enabled, torch.get_autocast_dtype,
            torch.amp.autocast, torch.amp.is_autocast_available,
        ]  # fmt: skip

    before = changed()
    with fake_device():
        assert all(now is not then for now, then in zip(changed(), before, strict=True))
    assert changed() == before
    assert not torch.__future__.get_swap_module_params_on_conversion()
    with pytest.raises(RuntimeError, match="unsupported autocast"):
        torch.autocast(DEVICE.type, dtype=torch.bfloat16)
    # torch's own meta device mixes devices, which is why the fake device exists.
    assert (torch.ones(3, 3, device=DEVICE) @ SQUARE).device == DEVICE
