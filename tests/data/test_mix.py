"""Which records a run sees: all risky ones, a seeded draw of clean ones, in the order of the files."""

from __future__ import annotations

import pytest

from safevlm.data.mix import draw_clean
from safevlm.data.records import Record
from safevlm.taxonomy import CLEAN, DEFAULT

CLEAN_ID = DEFAULT.category_id(CLEAN)


def _records() -> list[Record]:
    kinds = [(0, 3), (CLEAN_ID, 0), (None, None), (CLEAN_ID, None), (None, 0), (4, 2), (None, 2), (CLEAN_ID, 0)]
    return [Record(f"r{i}-{kind}", "", (), (), *labels) for i in range(10) for kind, labels in enumerate(kinds)]


def _is_clean(record: Record) -> bool:
    return record.safe_type == CLEAN_ID or (record.safe_type is None and record.safe_level == 0)


@pytest.mark.parametrize("clean", [0, 1, 13, 39])
def test_all_risky_and_unlabelled_records_stay_and_order_is_kept(clean: int) -> None:
    records = _records()
    drawn = draw_clean(records, DEFAULT, clean, seed=256)
    assert [r for r in drawn if not _is_clean(r)] == [r for r in records if not _is_clean(r)], "a risky record was lost"
    assert sum(map(_is_clean, drawn)) == clean
    assert drawn == [record for record in records if record in drawn], "the order of the files was not kept"


@pytest.mark.parametrize("clean", [None, 40, 3000])
def test_no_limit_or_too_few_clean_records_keeps_all(clean: int | None) -> None:
    assert draw_clean(_records(), DEFAULT, clean, seed=0) == _records(), "a small data set must train too"


def test_draw_follows_the_seed_and_nothing_else() -> None:
    first, again, other = (draw_clean(_records(), DEFAULT, 13, seed) for seed in (256, 256, 257))
    assert first == again, "two runs of the same recipe see different data"
    assert first != other, "the seed does nothing"
