"""Run by `test_sharding.py` in each of several processes. The leader prints what it found."""

import json

import torch
from torch import nn

from trainer import processes
from trainer.methods.base import Part
from trainer.training.sharding import Sharded


class Network(nn.Module):
    """Its weights have 5 and 3 rows, which two processes cannot share equally."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3)])

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


class Tasks:
    """What the leader calls."""

    def __init__(self, sharded, state):
        self._sharded, self._state = sharded, state

    def state(self):
        self._sharded.whole(self._state)

    def show_average(self, for_drawing):
        self._shown = self._sharded.whole_weights(for_drawing=for_drawing)
        self._shown.__enter__()

    def hide_average(self):
        self._shown.__exit__(None, None, None)


def main():
    cpu = torch.device("cpu")
    group = processes.JoinedProcesses(cpu)
    network, expected = Network(), Network()
    part = Part("unet", list(network.parameters()), 0.1)
    sharded = Sharded(lambda batch: network(batch).sum(1), [part], {"unet": network}, cpu, group)
    whole = {"parameters": [p.detach() for p in expected.parameters()]}
    for own, p in zip(sharded.own(whole)["parameters"], part.parameters, strict=True):
        assert torch.equal(own.to_local(), p.to_local())  # in each process
    images = torch.arange(12.0).view(3, 4) / 12
    sharded.losses(images[group.rank :: 2]).sum().backward()
    expected(images).sum(1).sum().backward()
    state = {
        "parameters": part.parameters,
        "optimizer": [p.grad for p in part.parameters],
        "reports": [1],
    }
    if not group.is_leader:
        processes.end(processes.follow(group, Tasks(sharded, state)))
    with processes.leading(group):
        rows = [len(p.to_local()) for p in part.parameters]
        whole = sharded.whole(state)
        own = sharded.own(whole)
        with sharded.whole_weights(for_drawing=True):
            is_same_outcome = torch.equal(network(images), expected(images))
        with sharded.whole_weights(for_drawing=False):
            inside = [tuple(p.shape) for p in network.parameters()]
            can_be_read = same(network.parameters(), expected.parameters())
        found = {
            "rows": rows,
            "weights are whole": same(whole["parameters"], expected.parameters()),
            "gradients are sums": same(whole["optimizer"], [p.grad for p in expected.parameters()]),
            "own parts come back": all(
                torch.equal(a.to_local(), b.to_local())
                for name in ("parameters", "optimizer")
                for a, b in zip(own[name], state[name], strict=True)
            ),
            "the rest stays": own["reports"] == [1],
            "inside": inside,
            "can be read": can_be_read,
            "same outcome": is_same_outcome,
            "rows after": [len(p.to_local()) for p in network.parameters()],
        }
        print(json.dumps(found))  # noqa: T201
    processes.end(0)


def same(tensors, others):
    return all(torch.allclose(a, b, atol=1e-6) for a, b in zip(tensors, others, strict=True))


if __name__ == "__main__":
    main()
