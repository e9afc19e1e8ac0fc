"""Without ZeRO-3 reading and writing weights is plain; with it, see tests/training/test_processes.py."""

from __future__ import annotations

import torch
from torch import nn

from safevlm.model import zero3


def test_whole_gives_copies_of_the_wanted_weights_and_buffers() -> None:
    model = nn.BatchNorm1d(2)
    state = zero3.whole(model, lambda name: name != "bias")
    assert set(state) == {"weight", "running_mean", "running_var", "num_batches_tracked"}
    state["weight"].fill_(7)
    assert torch.equal(model.weight, torch.ones(2)), "a saved tensor must not change with the live one"


def test_write_keeps_the_live_type() -> None:
    model = nn.Linear(2, 1).bfloat16()
    zero3.write(model, {"weight": torch.tensor([[1.0, 2.0]])})
    assert model.weight.dtype == torch.bfloat16 and model.weight.tolist() == [[1.0, 2.0]]


def test_nothing_is_planned_or_cut_in_one_process() -> None:
    assert not zero3.is_planned() and not zero3.is_cut(nn.Parameter(torch.zeros(1)))
    with zero3.off():
        assert not zero3.is_planned()
