"""What one pass over records keeps: counts, labels by image, and the first offenders of every kind."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from dataclasses import dataclass, field

from safevlm.check.findings import Finding
from safevlm.data.json_rows import RowError
from safevlm.data.records import (
    AnswerError,
    DialogueError,
    LabelError,
    MissingImageError,
    Record,
    RecordError,
    SlotError,
)
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

NAMED = 10
"""Offenders named in a finding; all are counted."""
NO_LABEL = "–"

DEFECTS: dict[type[RowError], str] = {
    AnswerError: "every conversation has an answer, and none is empty",
    DialogueError: "questions and answers alternate",
    SlotError: "image slots match the images",
    LabelError: "labels are known to the taxonomy and do not contradict each other",
    MissingImageError: "image files are there",
    RecordError: "records are well-formed",
}


@dataclass
class Offenders:
    """How many, and the first of them."""

    count: int = 0
    named: list[str] = field(default_factory=list)

    def add(self, which: str) -> None:
        self.count += 1
        if len(self.named) < NAMED:
            self.named.append(which)

    def finding(self, title: str, of: int | None = None, detail: str = "") -> Finding:
        if not self.count:
            return Finding(True, title, detail)
        more = [f"… and {self.count - len(self.named)} more"] if self.count > len(self.named) else []
        share = f"{self.count:,}" + (f" of {of:,}" if of is not None else "")
        return Finding(False, f"{title}: not so in {share}", "\n".join([*self.named, *more]))

    def told(self, what: str) -> Finding:
        """Something to know that is no defect."""
        return Finding(True, f"{what}: {self.count:,}", "\n".join(self.named))


@dataclass
class Survey:
    """What one pass over the records keeps."""

    taxonomy: Taxonomy
    records: int = 0
    defects: dict[type[RowError], Offenders] = field(default_factory=lambda: {kind: Offenders() for kind in DEFECTS})
    cells: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """(file, source, category, level) → records."""
    parts: Counter[str] = field(default_factory=Counter)
    """Of security tensors' pairs; empty: no part."""
    images: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Image → (category, level) of the first labelled record of it, -1: no label. Texts: Paths take thrice that."""
    contradicted: Offenders = field(default_factory=Offenders)
    """Images that are harmless in one record and risky in another."""
    relabelled: Offenders = field(default_factory=Offenders)
    """Images with two labels otherwise; questions about one image may be of different levels."""
    lengths: array[int] = field(default_factory=lambda: array("L"))
    """Characters of each conversation."""
    longest: tuple[int, str] = (0, "")
    seen: set[bytes] = field(default_factory=set)
    """Digests of the records of one file; the next file may hold the same ones (stage 2 holds stage 1)."""
    repeated: Offenders = field(default_factory=Offenders)

    def add(self, record: Record, file: str) -> None:
        self.parts[record.part] += 1
        self.cells[file, record.source or NO_LABEL, *self._names(record)] += 1
        length = sum(len(part.get("text", "")) for message in record.lm_messages for part in message["content"])
        self.longest = max(self.longest, (length, record.place))
        self.lengths.append(length)
        self._add_images(record)
        key = hashlib.blake2b(f"{record.images}{record.messages}".encode(), digest_size=12).digest()
        if key in self.seen:
            self.repeated.add(record.place)
        self.seen.add(key)

    def _names(self, record: Record) -> tuple[str, str]:
        category = NO_LABEL if record.safe_type is None else self.taxonomy.category_names[record.safe_type]
        return category, NO_LABEL if record.safe_level is None else self.taxonomy.level_names[record.safe_level]

    def _add_images(self, record: Record) -> None:
        label = _label_of(record)
        for path in map(str, record.images):
            known = self.images.get(path, label)
            self.compare(known, label, f"{record.place}: {path}")
            self.images[path] = label if -1 in known else known

    def compare(self, one: tuple[int, int], other: tuple[int, int], where: str) -> None:
        """Notes two different labels of one image."""
        if -1 in (*one, *other) or one == other:
            return
        (self.contradicted if self._is_clean(one) != self._is_clean(other) else self.relabelled).add(where)

    def _is_clean(self, label: tuple[int, int]) -> bool:
        return label[0] == self.taxonomy.category_id(CLEAN) or label[1] == self.taxonomy.level_id(SAFE)


def _label_of(record: Record) -> tuple[int, int]:
    return (
        -1 if record.safe_type is None else record.safe_type,
        -1 if record.safe_level is None else record.safe_level,
    )
