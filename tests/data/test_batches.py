"""Steps of one kind: what ZeRO-3 needs, and what saves padding."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.data import chat_messages
from safevlm.data.batches import GroupedSampler
from safevlm.data.record_facts import length
from safevlm.data.records import Record


def _records(images: int, words: int) -> list[Record]:
    """Images first; every text of another length."""
    return [
        Record(
            id=str(index),
            place=f"x:{index}",
            messages=(
                chat_messages.user("w" * (1 + index * 7 % 31), int(index < images)),
                chat_messages.assistant("a"),
            ),
            images=(Path("x.png"),) if index < images else (),
        )
        for index in range(images + words)
    ]


def _steps(sampler: GroupedSampler) -> list[list[int]]:
    order = list(sampler)
    return [order[start : start + sampler.step] for start in range(0, len(order), sampler.step)]


@pytest.mark.parametrize("by", ["kind", "length"])
@pytest.mark.parametrize(("images", "words"), [(13, 6), (8, 0), (0, 3), (1, 1)])
def test_every_step_is_of_one_kind_and_every_record_is_seen(by: str, images: int, words: int) -> None:
    records = _records(images, words)
    sampler = GroupedSampler(records, by, step=4, seed=0)
    steps = _steps(sampler)
    assert all(len({bool(records[row].images) for row in step}) == 1 for step in steps), "ranks would wait for ever"
    assert all(len(step) == 4 for step in steps) and sum(map(len, steps)) == len(sampler)
    assert {row for step in steps for row in step} == set(range(len(records)))
    assert len(sampler) - len(records) < 2 * 4, "only a kind's last step may repeat records"


def test_nothing_is_repeated_when_it_comes_out_even() -> None:
    assert sorted(GroupedSampler(_records(8, 4), "kind", step=4, seed=0)) == list(range(12))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first, again, other = (GroupedSampler(_records(13, 6), "kind", 4, seed) for seed in (1, 1, 2))
    assert list(first) == list(again) == list(first) and list(first) != list(other)
    again.set_epoch(1)
    assert list(first) != list(again)
    again.set_epoch(0)
    assert list(first) == list(again), "a resumed epoch must see the same order"


def test_records_of_a_step_are_of_like_length() -> None:
    records = _records(40, 0)

    def padding(by: str) -> int:
        sizes = [[length(records[row]) for row in step] for step in _steps(GroupedSampler(records, by, 4, 0))]
        return sum(max(step) * len(step) - sum(step) for step in sizes)

    assert padding("length") < 0.3 * padding("kind")
