"""The mixer's hint in training prompts, where inference would put it, and where the head cannot read it.

Stage 1 needs it: its LM tokens cannot see the image, so without a hint they can only learn to refuse more often,
harmless questions too (CHANGELOG.md).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial

from safevlm.data.record_facts import Facts
from safevlm.data.record_table import RecordTable
from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy


def add_hints(records: Sequence[Record], taxonomy: Taxonomy) -> Sequence[Record]:
    """Risky records with the hint of their own labels (`Record.hint`); all others as they are."""
    if not isinstance(records, RecordTable):
        return [_hinted(record, taxonomy) for record in records]
    return records.changed(partial(_hinted, taxonomy=taxonomy), _longer(records.facts, taxonomy))


def _hinted(record: Record, taxonomy: Taxonomy) -> Record:
    hint = _hint(record.safe_type, record.safe_level, taxonomy) if record.images else ""
    return dataclasses.replace(record, hint=hint) if hint else record


def _hint(safe_type: int | None, safe_level: int | None, taxonomy: Taxonomy) -> str:
    category, level = taxonomy.names_of(safe_type, safe_level)
    if level is None or category is None or level == SAFE or category == CLEAN:
        return ""
    return prompts.hint(taxonomy, level, category)


def _longer(facts: Facts, taxonomy: Taxonomy) -> Facts:
    """The facts of the records with their hints: a hint is a line more."""
    facts = facts.copy()
    for category, level in itertools.product(range(len(taxonomy.categories)), range(len(taxonomy.levels))):
        rows = (facts["safe_type"] == category) & (facts["safe_level"] == level) & (facts["images"] > 0)
        if hint := _hint(category, level, taxonomy):
            facts["length"][rows] += 1 + len(hint)
    return facts
