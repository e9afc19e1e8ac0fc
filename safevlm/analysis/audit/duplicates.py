"""Groups of images that are the same: pixel for pixel, or nearly (another quality, size or format).

    n images · 25 bytes each to compare, 16 of result, some 60 while it works: about 100 MB per million; thumbnails
    (112 bytes each) lie in a nameless file

Two images are nearly the same when at most `DISTANCE` of the 64 bits differ and no cell of their thumbnails differs
by more than `SHADES`. Groups are chains: the first and the last may differ more.

Who is compared with whom. Cut into `BANDS` bands, bits that differ in at most d places agree on all but d of the bands,
so only images that agree on some choice of `BANDS` - d bands are compared (multi-index hashing: Norouzi, Punjani and
Fleet, "Fast Exact Search in Hamming Space with Multi-Index Hashing", 2014). Who is in a group already is not compared
within it: equal fingerprints are taken as one, and a large bucket gives up its largest group first. So time is about
linear, also where thousands of images are alike.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safevlm.analysis.audit.fingerprint import GREY_BYTES, THUMB_BYTES

DISTANCE = 4
"""Bits of 64."""
SHADES = np.repeat(np.array([8, 10], np.int16), [GREY_BYTES, THUMB_BYTES - GREY_BYTES])
"""Steps of 256, for each byte of the thumbnails: grey, colour. Measured in tests/analysis/test_audit_duplicates.py."""
BITS = 64
BANDS = DISTANCE + 2
"""Two of them are 21 bits: buckets stay small up to millions of images, and 15 choices of two are few."""
BLOCK = 1 << 22
"""Pairs that are compared at once."""
SMALL = 256
"""Buckets to this size are compared all with all, many of them at once."""
LOOK = 4_096
"""Rows of a bucket that are looked at to find the cell that tells them apart."""


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
    rows = np.flatnonzero(prints.readable)
    exact = np.arange(len(prints.bits))
    exact[rows] = rows[_first_of_equals(prints.digests[rows].T)]
    parents = exact.copy()
    rows = rows[exact[rows] == rows]  # one of each exact group
    for left, right in _equal_prints(prints, rows):
        parents[right] = left
    rows = rows[parents[rows] == rows]  # one of each fingerprint
    _unite_alike(prints, parents, rows, range(BANDS))  # the same bits, so that they are not looked at in each choice
    for bands in itertools.combinations(range(BANDS), BANDS - DISTANCE):
        _unite_alike(prints, parents, rows, bands)
    return Groups(_without_loners(exact), _without_loners(_roots(parents, np.arange(len(parents)))))


def _first_of_equals(columns: np.ndarray) -> np.ndarray:
    """(c, n) → (n,): the lowest index with the same values in all columns."""
    count = columns.shape[1]
    order = np.lexsort((np.arange(count), *columns))
    starts = np.ones(count, bool)
    starts[1:] = (columns[:, order[1:]] != columns[:, order[:-1]]).any(0)
    first = np.empty(count, np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _equal_prints(prints: Fingerprints, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The first row of a fingerprint and its others, in blocks."""
    if len(rows) < 2:
        return
    order = np.argsort(prints.bits[rows])
    again = np.diff(prints.bits[rows[order]]) == 0
    rows = np.sort(rows[order[np.append(again, False) | np.append(False, again)]])  # the same bits as another
    sums = np.concatenate([np.zeros(0, np.uint64), *(_sums(prints.thumbs[piece]) for piece in _pieces(rows))])
    first = rows[_first_of_equals(np.stack([prints.bits[rows], sums]))]
    left, right = first[first != rows], rows[first != rows]
    for one, other in zip(_pieces(left), _pieces(right), strict=True):
        equal = (prints.thumbs[one] == prints.thumbs[other]).all(1)
        yield one[equal], other[equal]


def _sums(thumbs: np.ndarray) -> np.ndarray:
    """(n, 112) → (n,): equal for equal thumbnails, and hardly for others."""
    words = np.ascontiguousarray(thumbs).view(np.uint64)
    odd = np.random.default_rng(0).integers(0, 2**63, words.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    return (words * odd).sum(1, dtype=np.uint64)


def _unite_alike(prints: Fingerprints, parents: np.ndarray, rows: np.ndarray, bands: Sequence[int]) -> None:
    """Joins the rows that are nearly the same and agree in these bands, but in all bands only where that is asked."""
    keys = _keys(prints.bits[rows], bands)
    order = np.argsort(keys)
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    sizes = np.diff(np.append(starts, len(keys)))
    nearest = int(len(bands) < BANDS)
    several, large = (sizes > 1) & (sizes <= SMALL), sizes > SMALL
    _unite_in_small(prints, parents, rows, starts[several], sizes[several], nearest)
    for start, size in zip(starts[large], sizes[large], strict=True):
        _unite_in_large(prints, parents, rows[start : start + size], nearest)


def _keys(bits: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """(n,): the bits of these bands."""
    ends = [(band * BITS // BANDS, (band + 1) * BITS // BANDS) for band in bands]
    return bits & np.uint64(sum((1 << high) - (1 << low) for low, high in ends))


def _unite_in_small(
    prints: Fingerprints, parents: np.ndarray, rows: np.ndarray, starts: np.ndarray, sizes: np.ndarray, nearest: int
) -> None:
    """Compares all of a bucket with all; rows that lie 1, 2, … places apart, of all buckets at once."""
    bits = prints.bits[rows]
    for apart in range(1, int(sizes.max(initial=0))):
        starts, sizes = starts[sizes > apart], sizes[sizes > apart]
        pairs = sizes - apart
        left = np.repeat(starts - np.cumsum(pairs) + pairs, pairs)
        left += np.arange(len(left))
        for piece in _pieces(left, BLOCK):
            close = piece[_is_close(bits[piece], bits[piece + apart], nearest)]
            _unite_near(prints, parents, rows[close], rows[close + apart])


def _unite_in_large(prints: Fingerprints, parents: np.ndarray, bucket: np.ndarray, nearest: int) -> None:
    """Compares rows with all that are not in their group, those of the largest group first; groups grow meanwhile."""
    some = prints.thumbs[bucket[:LOOK]]
    cell = int(np.argmax(np.ptp(some, 0) - SHADES))  # tells most of them apart at once, where their bits do not
    step = 16
    while len(bucket) > 1:
        roots, which, sizes = np.unique(_roots(parents, bucket), return_inverse=True, return_counts=True)
        if len(roots) == 1:
            return
        order = np.lexsort((which, -sizes[which]))
        bucket, which = bucket[order], which[order]
        rows = bucket[:step]
        strangers = bucket[which != which[0]] if which[:step][-1] == which[0] else bucket
        shades = prints.thumbs[rows, cell, None].astype(np.int16) - prints.thumbs[None, strangers, cell]
        close = _is_close(prints.bits[rows, None], prints.bits[None, strangers], nearest)
        left, right = np.nonzero(close & (np.abs(shades) <= SHADES[cell]))
        _unite_near(prints, parents, rows[left], strangers[right])
        bucket = bucket[step:]
        step = max(1, min(2 * step, BLOCK // max(1, len(bucket)), len(bucket)))


def _is_close(left: np.ndarray, right: np.ndarray, nearest: int) -> np.ndarray:
    differing = np.bitwise_count(left ^ right)
    return (differing >= nearest) & (differing <= DISTANCE)


def _unite_near(prints: Fingerprints, parents: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """Joins those pairs whose thumbnails are nearly the same too."""
    for one, other in zip(_pieces(left), _pieces(right), strict=True):
        apart = parents[one] != parents[other]
        one, other = one[apart], other[apart]
        shades = prints.thumbs[one].astype(np.int16) - prints.thumbs[other]
        alike = (np.abs(shades) <= SHADES).all(1)
        _unite(parents, one[alike], other[alike])


def _pieces(rows: np.ndarray, most: int = BLOCK // THUMB_BYTES) -> Iterator[np.ndarray]:
    return (rows[start : start + most] for start in range(0, len(rows), most))


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
