"""Which records share a step.

A step is one micro-batch of every process. Where its records are of one kind (with images, or without), no process
waits for another's vision tower; where they are of like length, too, little is padded. The order depends on seed and
epoch alone, so resuming and another cut into processes see the same steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from safevlm.config import Grouping
from safevlm.data.records import Record

POOL = 50
"""Steps whose records are sorted by length together: enough to be alike, few enough to stay random."""


class GroupedSampler(Sampler[int]):
    """Indices such that each run of `step` of them is one step. A kind's last step is filled with its own records."""

    def __init__(self, records: Sequence[Record], by: Grouping, step: int, seed: int) -> None:
        self.rows = [[i for i, record in enumerate(records) if bool(record.images) == kind] for kind in (True, False)]
        self.lengths = [length(record) for record in records] if by == "length" else None
        self.step, self.seed, self.epoch = step, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(rows) // self.step) * self.step for rows in self.rows)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        steps = [step for rows in self.rows if rows for step in self._steps(rows, generator)]
        for index in torch.randperm(len(steps), generator=generator).tolist():
            yield from steps[index]

    def _steps(self, rows: Sequence[int], generator: torch.Generator) -> list[list[int]]:
        order = [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
        missing = -len(order) % self.step
        order += (order * (missing // len(order) + 1))[:missing]
        if self.lengths is not None:
            pools = [order[start : start + POOL * self.step] for start in range(0, len(order), POOL * self.step)]
            order = [row for pool in pools for row in sorted(pool, key=self.lengths.__getitem__, reverse=True)]
        return [order[start : start + self.step] for start in range(0, len(order), self.step)]


def length(record: Record) -> int:
    """Characters of the conversation, a stand-in for its tokens; images of one kind take the same room each."""
    texts = [part["text"] for message in record.lm_messages for part in message["content"] if part["type"] == "text"]
    return sum(map(len, texts))
