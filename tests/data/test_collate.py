"""Records → a batch: shapes, labels and masks as the module's docstring promises, and no record silently cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaProcessor

from llava_patch.processor import make_room
from safevlm.data import chat, chat_messages
from safevlm.data.collate import IGNORED, Collator
from safevlm.data.records import Record, RecordError
from safevlm.model.image_features import words_of
from safevlm.types import Request
from tests import tiny
from tests.training import workshop

EXTRA = 3
SLOTS = workshop.PATCHES + EXTRA


@pytest.fixture
def processor() -> LlavaProcessor:
    return make_room(workshop.processor(), tiny.stock_config(image_size=64, patch=16), EXTRA)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """One image, none, two in two turns, one without a verdict."""
    paths = []
    for index, colour in enumerate(["red", "green", "blue", "black"]):
        paths.append(tmp_path / f"{colour}.png")
        Image.new("RGB", (64, 64), colour).save(paths[index])
    return [
        Record(
            "one", "x:1", (chat_messages.user("What is it?", 1), chat_messages.assistant("A cup.")), (paths[0],), 4, 2
        ),
        Record("words", "x:2", (chat_messages.user("Hello there"), chat_messages.assistant("Hi.")), (), 0, 3),
        Record(
            "two",
            "x:3",
            (
                chat_messages.user("Here?", 1),
                chat_messages.assistant("Yes."),
                chat_messages.user("And now?", 1),
                chat_messages.assistant("No, not it."),
            ),
            (paths[1], paths[2]),
            0,
            1,
        ),
        Record("bare", "x:4", (chat_messages.user("Name it.", 1), chat_messages.assistant("Black.")), (paths[3],)),
    ]


def _answers(record: Record) -> str:
    return "".join(f" {turn['content'][0]['text']}</s>" for turn in record.messages if turn["role"] == "assistant")


def test_batch_holds_what_the_docstring_promises(processor: LlavaProcessor, records: list[Record]) -> None:
    batch = Collator(processor)(records)
    ids = batch["input_ids"]
    rows, length = ids.shape
    assert set(batch) == {
        "input_ids",
        "attention_mask",
        "labels",
        "logits_to_keep",
        "pixel_values",
        "safe_level",
        "safe_type",
        "safety_words",
        "safety_word_mask",
        "ids",
    }
    for name in ("attention_mask", "labels"):
        assert batch[name].shape == (rows, length), name
    assert batch["safety_words"].shape == batch["safety_word_mask"].shape and len(batch["safety_words"]) == rows
    assert batch["attention_mask"].dtype == torch.long and batch["safety_word_mask"].dtype == torch.bool
    assert batch["pixel_values"].shape == (4, 3, 64, 64)
    assert batch["ids"] == ["one", "words", "two", "bare"]
    assert ((ids == processor.image_token_id).sum(1) == torch.tensor([SLOTS, 0, 2 * SLOTS, SLOTS])).all()


def test_labels_are_the_answers_in_place(processor: LlavaProcessor, records: list[Record]) -> None:
    batch = Collator(processor)(records)
    labels, kept = batch["labels"], batch["labels"] != IGNORED
    assert torch.equal(labels[kept], batch["input_ids"][kept]), "label t must be the token at t; the loss shifts"
    for row, record in enumerate(records):
        assert processor.tokenizer.decode(labels[row][kept[row]]) == _answers(record)
    assert not (kept & ~batch["attention_mask"].bool()).any(), "padding has a label"


def test_logits_to_keep_are_the_positions_before_labels_of_any_row(
    processor: LlavaProcessor, records: list[Record]
) -> None:
    batch = Collator(processor)(records)
    found, length = batch["logits_to_keep"].tolist(), batch["labels"].shape[1]
    before = {at - 1 for row in batch["labels"] for at in range(1, length) if row[at] != IGNORED}
    assert found == sorted(before) and 0 < len(found) < length


def test_pixels_stand_in_the_order_of_the_slots(processor: LlavaProcessor, records: list[Record]) -> None:
    pixels = Collator(processor)(records)["pixel_values"]
    for index, path in enumerate(path for record in records for path in record.images):
        alone = processor.image_processor([Image.open(path)], return_tensors="pt")["pixel_values"][0]
        assert torch.equal(pixels[index], alone), f"image {index} is not the one of its slot"


def test_verdict_labels_need_an_image_and_a_label(processor: LlavaProcessor, records: list[Record]) -> None:
    batch = Collator(processor)(records)
    assert batch["safe_type"].tolist() == [4, IGNORED, 0, IGNORED], "a text-only record cannot teach the head"
    assert batch["safe_level"].tolist() == [2, IGNORED, 1, IGNORED]
    assert batch["safe_type"].dtype == torch.long


def _words(batch: dict[str, Any], row: int) -> list[int]:
    return batch["safety_words"][row][batch["safety_word_mask"][row]].tolist()


def test_words_for_the_head_are_the_requests_as_inference_reads_them(
    processor: LlavaProcessor, records: list[Record]
) -> None:
    batch = Collator(processor)(records)
    for row, record in enumerate(records):
        first, *later = [turn["content"][-1]["text"] for turn in record.messages if turn["role"] == "user"]
        request = Request(first, images=record.images)
        if later:
            request = Request(later[0], images=record.images, history=((first, "No."),), images_per_turn=(1, 1))
        asked = words_of(processor, request, torch.device("cpu")).tolist()
        assert _words(batch, row) == asked, f"{record.id}: the head reads other words in training than at inference"
        if not later:  # the whole prompt but its image slots
            assert asked == chat.prompt_ids(processor, request, 0)
    both = processor.tokenizer.decode(_words(batch, 2))
    assert "Here?" in both and "And now?" in both, "a later question is part of the request"
    assert "Yes" not in both and "not it" not in both, "the head sees the answer that it should judge without"


def test_a_hint_reaches_the_llm_and_never_the_head(processor: LlavaProcessor, records: list[Record]) -> None:
    plain = Collator(processor)(records)
    hinted = Collator(processor)([replace(record, hint="Take care: knives.") for record in records])
    for name in ("safety_words", "safety_word_mask"):
        assert torch.equal(plain[name], hinted[name]), f"{name} tells which records have a hint"
    for ids in hinted["input_ids"]:
        assert "knives" in processor.tokenizer.decode(ids)


def test_text_only_batch(processor: LlavaProcessor, records: list[Record]) -> None:
    batch = Collator(processor)([records[1]])
    assert "pixel_values" not in batch
    assert batch["safe_type"].tolist() == [IGNORED]


def test_row_does_not_depend_on_its_batch(processor: LlavaProcessor, records: list[Record]) -> None:
    together = Collator(processor)(records)
    for row, record in enumerate(records):
        alone = Collator(processor)([record])
        length = alone["input_ids"].shape[1]
        for name in ("input_ids", "labels", "attention_mask"):
            assert torch.equal(together[name][row, :length], alone[name][0]), f"{name} of {record.id}"
        assert _words(together, row) == _words(alone, 0), record.id
        assert not together["attention_mask"][row, length:].any()


def test_collator_changes_no_record(processor: LlavaProcessor, records: list[Record]) -> None:
    kept = repr(records)
    Collator(processor)(records)
    assert repr(records) == kept


def _length(processor: LlavaProcessor, record: Record) -> int:
    return Collator(processor)([record])["input_ids"].shape[1]


def test_long_answer_is_cut_at_max_length(processor: LlavaProcessor, records: list[Record]) -> None:
    full = Collator(processor)([records[0]])
    length = full["input_ids"].shape[1]
    cut = Collator(processor, max_length=length - 2)([records[0]])
    for name in ("input_ids", "labels", "attention_mask"):
        assert torch.equal(cut[name], full[name][:, :-2]), name


def _error(processor: LlavaProcessor, rows: list[Record], *parts: str, **options: Any) -> None:
    with pytest.raises(RecordError) as error:
        Collator(processor, **options)(rows)
    assert all(part in str(error.value) for part in parts), f"{parts} not in: {error.value}"


def test_the_first_record_that_is_cut_is_told_once(
    processor: LlavaProcessor, records: list[Record], caplog: pytest.LogCaptureFixture
) -> None:
    collate = Collator(processor, max_length=_length(processor, records[1]) - 1)
    for _ in range(2):
        collate(records[1:2])
    assert [message.count("x:2") for message in caplog.messages] == [1]


def test_max_length_that_leaves_no_answer_is_an_error(processor: LlavaProcessor, records: list[Record]) -> None:
    prompt = int((Collator(processor)([records[0]])["labels"][0] == IGNORED).sum())
    _error(processor, records[:1], "x:1: ", "no token of an answer", "data.max_length", max_length=prompt)
    kept = Collator(processor, max_length=prompt + 1)([records[0]])["labels"]
    assert (kept != IGNORED).sum() == 1


def test_max_length_that_cuts_an_image_is_an_error(processor: LlavaProcessor, records: list[Record]) -> None:
    ids = Collator(processor)([records[2]])["input_ids"][0]
    last = int((ids == processor.image_token_id).nonzero().max())
    _error(processor, [records[1], records[2]], "x:3: ", "data.max_length", "through an image", max_length=last)
    Collator(processor, max_length=last + 1)([records[2]])


def test_broken_image_names_the_record(processor: LlavaProcessor, records: list[Record]) -> None:
    records[2].images[1].write_bytes(b"")
    _error(processor, records, "x:3: ", str(records[2].images[1]), "empty")
