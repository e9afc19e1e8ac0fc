"""Several ways of one work in rounds, by the CPU's clock: a busy machine counts less."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tqdm import tqdm

Work = Callable[[], object]


def in_rounds(ways: Mapping[str, Work], rounds: int, title: str) -> dict[str, list[float]]:
    """CPU seconds of every way in every round; who goes first rotates, and the first round warms up."""
    names = list(ways)
    found: dict[str, list[float]] = {name: [] for name in names}
    for turn in tqdm(range(-1, rounds), title, unit="round", leave=False):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):
            started = time.process_time()
            ways[name]()
            if turn >= 0:
                found[name].append(time.process_time() - started)
    return found
