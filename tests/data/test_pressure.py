"""Records under pressure: what of them is learned, who gets it, and where it comes from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from llava_patch.processor import make_room
from safevlm.data import chat_messages, pressure
from safevlm.data.collate import IGNORED, Collator
from safevlm.data.record_table import open_records
from safevlm.data.records import Record, RecordError, read_records
from safevlm.taxonomy import DEFAULT
from tests import tiny
from tests.training import workshop


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pressure")
    return workshop.save_rows(folder / "train.jsonl", workshop.rows(folder, 60))


@pytest.fixture(scope="module")
def records(file: Path) -> list[Record]:
    return read_records([file], DEFAULT)


def _pressed(records: Sequence[Record], share: float = 1.0, seed: int = 0) -> list[Record]:
    return list(pressure.add_pressure(records, DEFAULT, share, seed))


def _learned(records: Sequence[Record]) -> list[str]:
    """The words that have labels, row by row."""
    processor = make_room(workshop.processor(), tiny.stock_config(image_size=64, patch=16), 0)
    labels = Collator(processor)(records)["labels"]
    return [processor.tokenizer.decode(row[row != IGNORED]) for row in labels]


def _answers(record: Record) -> str:
    return "".join(f" {turn['content'][0]['text']}</s>" for turn in record.messages if turn["role"] == "assistant")


def _last_answer(record: Record) -> str:
    return str(record.messages[-1]["content"][0]["text"])


def test_what_is_learned_is_the_record_s_own_answer_and_no_token_of_a_forged_or_earlier_one(
    records: list[Record],
) -> None:
    pressed = _pressed(records)
    assert any(record.context for record in pressed) and any(not record.context for record in pressed)
    wanted = [_answers(record) for record in records]
    assert _learned(records) == wanted, "the records as they are"
    assert _learned(pressed) == wanted


def test_a_conversation_of_its_own_is_learned_whole_behind_earlier_turns(records: list[Record]) -> None:
    more = (*records[0].messages, chat_messages.user("And?"), chat_messages.assistant("Nothing."))
    several = [dataclasses.replace(records[0], messages=more, place=f"x:{number}") for number in range(8)]
    pressed = _pressed([*several, *records])[: len(several)]
    assert {record.context > 0 for record in pressed} == {True, False}
    assert _learned(pressed) == [_answers(several[0])] * len(several)


def test_pressure_keeps_images_labels_and_answers_and_comes_in_both_kinds_to_risky_and_clean(
    records: list[Record],
) -> None:
    pressed = _pressed(records)
    for before, after in zip(records, pressed, strict=True):
        assert (after.images, after.safe_type, after.safe_level) == (before.images, before.safe_type, before.safe_level)
        assert _last_answer(after) == _last_answer(before)
        assert after.messages != before.messages
        images = [[part["type"] for part in message["content"]].count("image") for message in after.messages]
        assert images == [0] * (len(images) - 2) + [1, 0], "the image stays with its question"
    kinds = {(record.safe_level == 0, bool(record.context)) for record in pressed}
    assert kinds == {(clean, turns) for clean in (True, False) for turns in (True, False)}


def test_earlier_turns_are_those_of_clean_records(records: list[Record]) -> None:
    own = {_last_answer(record) for record in records if record.safe_level == 0}
    earlier = [
        message["content"][0]["text"]
        for record in _pressed(records)
        for message in record.messages[: 2 * record.context]
        if message["role"] == "assistant"
    ]
    assert earlier and set(earlier) <= own


def test_share_and_seed_choose_and_a_table_is_changed_as_a_list_is(file: Path, records: list[Record]) -> None:
    share = 0.4
    pressed = _pressed(records, share)
    touched = [before is not after for before, after in zip(records, pressed, strict=True)]
    assert 0.2 < np.mean(touched) < 0.6
    assert pressed == _pressed(records, share), "the same seed"
    assert pressed != _pressed(records, share, seed=1)
    assert _pressed(records, 0.0) == records
    assert list(pressure.add_pressure(open_records([file], DEFAULT), DEFAULT, share, 0)) == pressed


def test_without_a_clean_record_there_is_nothing_to_comply_with(records: list[Record]) -> None:
    risky = [record for record in records if record.safe_level]
    with pytest.raises(RecordError, match=r"data\.pressure"):
        _pressed(risky)
