"""The memory that a run may use."""

from __future__ import annotations

import pytest
import torch

from trainer.planning import cards

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_a_part_of_each_card_is_not_usable():
    found = [round(cards.usable(size) / 1e9, 1) for size in cards.SIZES]
    assert found == [3.0, 5.1, 7.3, 9.4, 11.6, 15.9, 24.5]


@pytest.mark.parametrize("text", ["8", "8 GB", "8GB", "8.0"])
def test_a_number_of_gb_is_a_card_of_that_size(text):
    assert cards.budget(text, CPU) == cards.usable(8)


def test_without_a_cuda_device_auto_knows_no_limit(monkeypatch):
    assert cards.budget("auto", CPU) is None
    assert cards.budget("off", CUDA) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(5e9), int(8e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: int(2e9))
    assert cards.budget("auto", CUDA) == 6.2e9


@pytest.mark.parametrize("text", ["much", "0", "-3", "1", "", "8 TB"])
def test_other_values_are_refused(text):
    with pytest.raises(ValueError) as caught:
        cards.budget(text, CPU)
    assert str(caught.value) == f"vram must be auto, off or a number of GB such as 8, got {text!r}."
