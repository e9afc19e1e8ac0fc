"""The mixer's hint in training prompts, where inference would put it, and where the head cannot read it.

Stage 1 needs it: its LM tokens cannot see the image, so without a hint they can only learn to refuse more often,
harmless questions too (CHANGELOG.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.taxonomy import CLEAN, SAFE, Taxonomy


def add_hints(records: Sequence[Record], taxonomy: Taxonomy) -> list[Record]:
    """Risky records with the hint of their own labels (`Record.hint`); all others as they are."""
    return [_hinted(record, taxonomy) for record in records]


def _hinted(record: Record, taxonomy: Taxonomy) -> Record:
    if record.safe_level is None or record.safe_type is None or not record.images:
        return record
    level, category = taxonomy.level_names[record.safe_level], taxonomy.category_names[record.safe_type]
    if level == SAFE or category == CLEAN:
        return record
    return dataclasses.replace(record, hint=prompts.hint(taxonomy, level, category))
