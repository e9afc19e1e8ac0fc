"""Which records share a step.

A step is one micro-batch of every process. Where its records are of one kind (with images, or without), no process
waits for another's vision tower; where they are of like length, too, little is padded. The order depends on seed and
epoch alone, so resuming and another cut into processes see the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from safevlm.config import Grouping
from safevlm.data.record_facts import facts_of
from safevlm.data.records import Record

POOL = 50
"""Steps whose records are sorted by length together: enough to be alike, few enough to stay random."""


class GroupedSampler(Sampler[int]):
    """Indices such that each run of `step` of them is one step. A kind's last step is filled with its own records."""

    def __init__(self, records: Sequence[Record], by: Grouping, step: int, seed: int) -> None:
        facts = facts_of(records)
        self.rows = [np.flatnonzero((facts["images"] > 0) == kind) for kind in (True, False)]
        self.lengths = facts["length"] if by == "length" else None
        self.step, self.seed, self.epoch = step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.step) * self.step for rows in self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        steps = np.concatenate([self._steps(rows, generator) for rows in self.rows if len(rows)])
        for index in torch.randperm(len(steps), generator=generator).numpy():
            yield from steps[index].tolist()

    def _steps(self, rows: NDArray[Any], generator: torch.Generator) -> NDArray[Any]:
        """(steps, records of a step)."""
        order = rows[torch.randperm(len(rows), generator=generator).numpy()]
        order = np.resize(order, -(-len(order) // self.step) * self.step)  # repeats from the start
        if self.lengths is not None:
            pools = [order[start : start + POOL * self.step] for start in range(0, len(order), POOL * self.step)]
            order = np.concatenate([pool[np.argsort(-self.lengths[pool], kind="stable")] for pool in pools])
        return order.reshape(-1, self.step)
