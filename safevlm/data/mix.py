"""Which records a run sees."""

from __future__ import annotations

import random
from collections.abc import Sequence

from safevlm.data.records import Record, is_clean
from safevlm.taxonomy import Taxonomy


def draw_clean(records: Sequence[Record], taxonomy: Taxonomy, clean: int | None, seed: int) -> list[Record]:
    """All risky and unlabelled records and `clean` of the clean ones (all, if there are fewer; None: all), in order.

    SafeVLM's stage 1 takes all risky records and 3,000 clean ones (methods §1.5).
    """
    rows = [index for index, record in enumerate(records) if is_clean(record, taxonomy)]
    if clean is None or clean >= len(rows):
        return list(records)
    dropped = set(rows) - set(random.Random(seed).sample(rows, clean))
    return [record for index, record in enumerate(records) if index not in dropped]
