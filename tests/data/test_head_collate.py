"""What a head that trains alone is fed is what it is fed beside the LLM, without what only the LLM reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from safevlm.data.collate import IGNORED, Collator
from safevlm.data.head_collate import HeadCollator
from safevlm.data.records import Record, read_records
from safevlm.taxonomy import DEFAULT
from tests.training import workshop

SLOTS = 3


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Four records, the third without an image, the second without a verdict."""
    folder = tmp_path_factory.mktemp("data")
    return read_records([workshop.save_rows(folder / "mixed.jsonl", workshop.mixed_rows(folder, 6))], DEFAULT)[:4]


@pytest.mark.parametrize("reads_text", [False, True])
def test_the_head_is_fed_what_it_is_fed_beside_the_llm(records: list[Record], reads_text: bool) -> None:
    processor = workshop.processor()
    alone, beside = HeadCollator(processor, SLOTS, reads_text)(records), Collator(processor)(records)
    words = ("safety_words", "safety_word_mask")
    assert set(words) <= set(alone) if reads_text else not set(words) & set(alone)
    for name in ("pixel_values", "safe_level", "safe_type", *(words if reads_text else ())):
        assert torch.equal(alone[name], beside[name]), name
    assert alone["ids"] == beside["ids"] and (alone["labels"] == IGNORED).all()
    images = [len(record.images) for record in records]
    assert (alone["input_ids"] == processor.image_token_id).sum(1).tolist() == [SLOTS * count for count in images]


def test_images_whose_patches_are_known_are_not_opened(records: list[Record], tmp_path: Path) -> None:
    known = {record.images[0]: torch.full((2, 5), float(index)) for index, record in enumerate(records[:2])}
    collate = HeadCollator(workshop.processor(), SLOTS, False, known.get)
    batch = collate(records)
    assert batch["has_patches"].tolist() == [True, True, False]
    assert batch["patches"].flatten(1)[:, 0].tolist() == [0.0, 1.0] and len(batch["pixel_values"]) == 1
    assert "pixel_values" not in collate(records[:2])
    assert not {"pixel_values", "patches", "has_patches"} & set(collate(records[2:3]))
