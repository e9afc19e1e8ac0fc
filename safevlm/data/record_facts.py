"""What passes over all records need to know of each, as columns: a few bytes a record in the place of the record.

`facts_of` works on any records; those of a `RecordTable` have their columns at hand, so that nothing is parsed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm.data.answers import HEAD_ONLY
from safevlm.data.records import PARTS, Record
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

NONE = -1
"""In a column of ids: the record has no such label."""
FACTS = np.dtype(
    [
        ("images", "i4"),  # how many
        ("safe_type", "i4"),
        ("safe_level", "i4"),
        ("part", "i1"),  # index in PARTS, or NONE
        ("head_only", "?"),  # its answer only stands in for one
        ("length", "i8"),  # characters, see `length`
    ]
)
Facts = NDArray[Any]
"""(n,) of FACTS."""


def length(record: Record) -> int:
    """Characters of the conversation, a stand-in for its tokens; images of one kind take the same room each."""
    texts = [part["text"] for message in record.lm_messages for part in message["content"] if part["type"] == "text"]
    return sum(map(len, texts))


def fact(record: Record) -> tuple[int, int, int, int, bool, int]:
    """A row of FACTS."""
    return (
        len(record.images),
        NONE if record.safe_type is None else record.safe_type,
        NONE if record.safe_level is None else record.safe_level,
        PARTS.index(record.part) if record.part else NONE,
        any(message["content"][0].get("text") == HEAD_ONLY for message in record.messages),
        length(record),
    )


def facts_of(records: Sequence[Record]) -> Facts:
    """(n,) of FACTS."""
    known = getattr(records, "facts", None)
    return np.array(list(map(fact, records)), FACTS) if known is None else known


def are_clean(facts: Facts, taxonomy: Taxonomy) -> NDArray[np.bool_]:
    """(n,) `safevlm.data.records.is_clean` of each."""
    is_safe = facts["safe_level"] == taxonomy.level_id(SAFE)
    return np.where(facts["safe_type"] == NONE, is_safe, facts["safe_type"] == taxonomy.category_id(CLEAN))


def label_counts(ids: NDArray[Any]) -> dict[str, int]:
    """How many records have each id of a column, by its text; `None`: unlabelled."""
    values, counts = np.unique(ids, return_counts=True)
    names = [str(None if one == NONE else one) for one in values.tolist()]
    return dict(sorted(zip(names, counts.tolist(), strict=True)))
