"""The same work on a million items, in threads, with a progress bar and without a million futures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH = 256
"""Items in flight; `Executor.map` alone would take all of them at once."""


def in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], title: str, total: int | None = None
) -> Iterator[Result]:
    """`map(work, items)`, in order."""
    left = iter(items)
    with ThreadPoolExecutor() as pool, tqdm(desc=title, total=total, leave=False) as bar:
        while batch := list(islice(left, BATCH)):
            for result in pool.map(work, batch):
                bar.update()
                yield result
