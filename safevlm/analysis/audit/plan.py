"""Which process looks at which images: the data in shards of fixed size, in a fixed order.

A shard never crosses a container, so that finished containers are not opened again; its number and its images depend
on the data and the shard size alone, never on how many processes there are. One shard is one file on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from safevlm.analysis.audit.sources import Container, Item, Listing


@dataclass(frozen=True)
class PlacedItem:
    """An item and where it stands in the whole."""

    index: int
    """Within the data."""
    shard: int
    item: Item


@dataclass(frozen=True)
class ShardPlan:
    """The data's shards."""

    containers: tuple[Container, ...]
    listings: tuple[Listing, ...]
    size: int
    """Images in a full shard."""

    @property
    def images(self) -> int:
        return sum(listing.count for listing in self.listings)

    @property
    def shards(self) -> int:
        return sum(self._shards_of(listing.count) for listing in self.listings)

    @property
    def digest(self) -> str:
        """Changes when images come, go, or are named or sized otherwise."""
        lines = "".join(f"{listing.count} {listing.digest}\n" for listing in self.listings)
        return hashlib.sha256(lines.encode()).hexdigest()

    def images_of(self, shards: Collection[int]) -> int:
        """How many images these shards hold."""
        return sum(self._length(shard) for shard in shards)

    def items(self, shards: Collection[int]) -> Iterator[PlacedItem]:
        """The items of these shards, in order; containers without any are not opened."""
        for container, first, first_shard, count in self._rows():
            if any(shard in shards for shard in range(first_shard, first_shard + self._shards_of(count))):
                yield from self._sweep(container, first, first_shard, lambda index, shard: shard in shards)

    def items_at(self, indices: Collection[int]) -> Iterator[PlacedItem]:
        """The items at these indices, in order; containers without any are not opened."""
        for container, first, first_shard, count in self._rows():
            if any(first <= index < first + count for index in indices):
                yield from self._sweep(container, first, first_shard, lambda index, shard: index in indices)

    def _sweep(
        self, container: Container, first: int, first_shard: int, wanted: Callable[[int, int], bool]
    ) -> Iterator[PlacedItem]:
        """Items of a container; `wanted` is asked for the index and the shard of each."""
        for item in container.items(lambda at: wanted(first + at, first_shard + at // self.size)):
            yield PlacedItem(first + item.position, first_shard + item.position // self.size, item)

    def _rows(self) -> Iterator[tuple[Container, int, int, int]]:
        """Every container with the index of its first image, its first shard, and its count."""
        first = first_shard = 0
        for container, listing in zip(self.containers, self.listings, strict=True):
            yield container, first, first_shard, listing.count
            first, first_shard = first + listing.count, first_shard + self._shards_of(listing.count)

    def _shards_of(self, count: int) -> int:
        return -(-count // self.size)

    def _length(self, shard: int) -> int:
        for _, _, first_shard, count in self._rows():
            within = shard - first_shard
            if 0 <= within < self._shards_of(count):
                return min(self.size, count - within * self.size)
        raise ValueError(f"no shard {shard} among {self.shards}")


def make_plan(containers: Sequence[Container], size: int) -> ShardPlan:
    """Walks through all containers once, reading no image. ValueError: there are no images at all."""
    listings = tuple(container.listing() for container in tqdm(containers, "listing", leave=False))
    plan = ShardPlan(tuple(containers), listings, size)
    if not plan.images:
        raise ValueError(f"{', '.join(container.name or 'DATA' for container in containers)[:200]}: no images in it")
    return plan
