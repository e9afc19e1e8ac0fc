"""Groups of images that are the same: pixel for pixel, or nearly (another quality, size or format).

    n images · 25 bytes each to compare, 16 of result, some 40 while it works: about 80 MB per million; thumbnails
    (112 bytes each) lie in a nameless file

Two images are nearly the same when at most `DISTANCE` of the 64 bits differ and no cell of their thumbnails differs
by more than `SHADES`. Bits that differ in at most d places agree on at least one of d + 1 bands, so images are
compared only with those that share a band. Groups are chains: the first and the last may differ more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safevlm.analysis.audit.fingerprint import GREY_BYTES, THUMB_BYTES

DISTANCE = 4
"""Bits of 64."""
SHADES = np.repeat(np.array([8, 10], np.int16), [GREY_BYTES, THUMB_BYTES - GREY_BYTES])
"""Steps of 256, for each byte of the thumbnails: grey, colour. Measured in tests/analysis/test_audit_duplicates.py."""
BANDS = DISTANCE + 1
BLOCK = 1 << 22
"""Pairs that are compared at once."""
BITS = 64


@dataclass(frozen=True)
class Fingerprints:
    """What duplicates are told by, one row per image."""

    readable: np.ndarray
    """(n,) bool."""
    digests: np.ndarray
    """(n, 2) uint64: the first half of the pixels' sha256."""
    bits: np.ndarray
    """(n,) uint64."""
    thumbs: np.ndarray
    """(n, 112) uint8."""

    @classmethod
    def room(cls, count: int, folder: Path) -> Fingerprints:
        """Empty rows, to be filled shard by shard. Thumbnails are on disk, in `folder`: few of them are looked at."""
        with tempfile.TemporaryFile(dir=folder) as file:  # the map keeps it alive
            thumbs = np.memmap(file, np.uint8, "w+", shape=(count, THUMB_BYTES))
        return cls(np.zeros(count, bool), np.zeros((count, 2), np.uint64), np.zeros(count, np.uint64), thumbs)


@dataclass(frozen=True)
class Groups:
    """For every image the index of the first image of its group; -1 where it is alone."""

    exact: np.ndarray
    near: np.ndarray
    """Exact ones among them."""


def group(prints: Fingerprints) -> Groups:
    """Exact and near duplicates."""
    first = _first_of_equals(prints)
    parents = first.copy()
    chosen = np.flatnonzero(prints.readable & (first == np.arange(len(first))))  # one of each exact group
    for left, right in _near_pairs(prints, chosen):
        _unite(parents, left, right)
    return Groups(_without_loners(first), _without_loners(_roots(parents, np.arange(len(parents)))))


def _first_of_equals(prints: Fingerprints) -> np.ndarray:
    """(n,): the lowest index with the same digest; unreadable images are equal to nothing."""
    first = np.arange(len(prints.bits))
    rows = np.flatnonzero(prints.readable)
    high, low = prints.digests[rows].T
    order = np.lexsort((rows, low, high))
    high, low, rows = high[order], low[order], rows[order]
    starts = np.ones(len(rows), bool)
    starts[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first[rows] = rows[starts][np.cumsum(starts) - 1] if len(rows) else rows
    return first


def _near_pairs(prints: Fingerprints, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of near duplicates among the rows, in blocks; some come more than once."""
    for band in range(BANDS):
        low, high = band * BITS // BANDS, (band + 1) * BITS // BANDS
        keys = (prints.bits[rows] >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(keys, kind="stable")
        edges = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(rows[order], edges):
            yield from _near_in_bucket(prints, bucket)


def _near_in_bucket(prints: Fingerprints, bucket: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Compares all of a bucket with all, a block of rows at a time."""
    step = max(1, BLOCK // max(1, len(bucket)))
    for start in range(0, len(bucket) - 1, step):
        rows, others = bucket[start : start + step], bucket[start:]
        differing = np.bitwise_count(prints.bits[rows, None] ^ prints.bits[None, others])
        left, right = np.nonzero(np.triu(differing <= DISTANCE, k=1))
        left, right = rows[left], others[right]
        for at in range(0, len(left), BLOCK // THUMB_BYTES):
            piece = slice(at, at + BLOCK // THUMB_BYTES)
            shades = prints.thumbs[left[piece]].astype(np.int16) - prints.thumbs[right[piece]]
            alike = (np.abs(shades) <= SHADES).all(1)
            yield left[piece][alike], right[piece][alike]


def _unite(parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Joins the groups of every pair; a group's root is its lowest index."""
    while len(left):
        left, right = _roots(parents, left), _roots(parents, right)
        apart = left != right
        low, high = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(parents, high, low)  # a root may be joined to several at once: the rest stays for the next round
        left, right = low, high


def _roots(parents: np.ndarray, rows: np.ndarray) -> np.ndarray:
    roots = parents[rows]
    while not np.array_equal(roots, above := parents[roots]):
        roots = above
    parents[rows] = roots
    return roots


def _without_loners(first: np.ndarray) -> np.ndarray:
    sizes = np.bincount(first, minlength=len(first))
    return np.where(sizes[first] > 1, first, -1)
