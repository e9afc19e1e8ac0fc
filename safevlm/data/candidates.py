"""Rows that a mix may draw, as columns of a few bytes a row, and the seeded draw among them.

Same rows, counts and seed: the same draw. Each category has a draw of its own.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm.data.labels import Label

CANDIDATE = np.dtype(
    [
        ("source", "i4"),  # which of several sources
        ("index", "i8"),  # number among its source's candidates
        ("label", "i4"),  # which of `Candidates.labels`
        ("head_only", "?"),  # it has no answer: it can train the head, and no words
        ("id", "i8"),  # hash of the row's id, by which ids that occur twice are found
    ]
)
Rows = NDArray[np.int64]
"""(n,) numbers of candidates, in order."""


class Candidates:
    """Rows in the order of their sources, and the labels that they have."""

    def __init__(self, rows: NDArray[Any], labels: Sequence[Label]) -> None:
        """`rows` (n,) of CANDIDATE."""
        self.rows, self.labels = rows, tuple(labels)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: NDArray[Any]) -> Candidates:
        """Those at these numbers, or where a mask is true."""
        return Candidates(self.rows[rows], self.labels)

    def counts(self, name_of: Mapping[Label, str] | None = None) -> dict[str, int]:
        """How many of each bucket, or of each name; in the order of the first of each."""
        names = [label.bucket if name_of is None else name_of[label] for label in self.labels]
        return first_come_counts(self.rows["label"], names)

    def buckets(self) -> dict[str, Rows]:
        """Under which bucket the mix counts them → their numbers."""
        names = [label.bucket for label in self.labels]
        kinds = list(dict.fromkeys(names))
        of_label = np.array([kinds.index(name) for name in names], "i4")
        own = of_label[self.rows["label"]] if len(self) else np.zeros(0, "i4")
        return {kind: np.flatnonzero(own == number) for number, kind in enumerate(kinds)}


class CandidateColumns:
    """Candidates of one source, added one by one."""

    def __init__(self) -> None:
        self._id, self._label, self._head_only = array("q"), array("i"), bytearray()
        self._labels: dict[Label, int] = {}

    def add(self, label: Label, id: str, is_head_only: bool) -> None:
        self._id.append(hash(id))
        self._label.append(self._labels.setdefault(label, len(self._labels)))
        self._head_only.append(is_head_only)

    def made(self) -> Candidates:
        rows = np.zeros(len(self._id), CANDIDATE)
        rows["index"], rows["id"], rows["label"] = np.arange(len(rows)), self._id, self._label
        rows["head_only"] = np.frombuffer(self._head_only, "u1")
        return Candidates(rows, list(self._labels))


def joined(sources: Iterable[Candidates]) -> Candidates:
    """Those of several sources, numbered by `source`."""
    labels: dict[Label, int] = {}
    columns = []
    for number, one in enumerate(sources):
        ours = np.array([labels.setdefault(label, len(labels)) for label in one.labels], "i4")
        rows = one.rows.copy()
        rows["source"] = number
        rows["label"] = ours[rows["label"]] if len(rows) else rows["label"]
        columns.append(rows)
    return Candidates(np.concatenate(columns) if columns else np.zeros(0, CANDIDATE), list(labels))


def draw(candidates: Candidates, counts: Mapping[str, int | None], seed: str, where: str) -> tuple[Rows, list[str]]:
    """So many of each category (None, or not named: all), in order; and what was short."""
    of_bucket = candidates.buckets()
    is_chosen = np.zeros(len(candidates), bool)
    short = []
    for name in [*counts, *(name for name in of_bucket if name not in counts)]:
        rows, asked = of_bucket.get(name, np.zeros(0, "i8")), counts.get(name)
        if asked is not None and asked > len(rows):
            short.append(f"{where}.{name}: {asked} asked for, {len(rows)} found")
        if asked is not None and asked < len(rows):
            rows = rows[random.Random(f"{seed}/{name}").sample(range(len(rows)), asked)]
        is_chosen[rows] = True
    return np.flatnonzero(is_chosen), short


def first_come_counts(ids: NDArray[Any], names: Sequence[str]) -> dict[str, int]:
    """How many of each name; `ids` (n,) are indices in `names`."""
    found, first, counts = np.unique(ids, return_index=True, return_counts=True)
    told: dict[str, int] = {}
    for at in np.argsort(first):
        name = names[found[at]]
        told[name] = told.get(name, 0) + int(counts[at])
    return told
