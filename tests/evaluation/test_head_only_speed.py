"""The ways that are timed are what they are called, and none of them learns another head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from llava_patch import vision
from safevlm.evaluation.speed import head_only
from tests.training import workshop

RECORDS, EPOCHS = 32, 21
"""One update to an epoch, and more of them than the recipe warms up for."""


@pytest.mark.slow
def test_every_way_learns_the_same_and_sends_the_images_through_the_tower_as_often_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    encode = vision.encode_images

    def counted(model: Any, pixel_values: Tensor) -> vision.VisionPass:
        passes.append(len(pixel_values))
        return encode(model, pixel_values)

    monkeypatch.setattr(vision, "encode_images", counted)
    workshop.rows(tmp_path / "data", RECORDS)
    base = workshop.stock_folder(tmp_path / "base")
    table = head_only.head_only(
        "miniature_stage1", base, tmp_path / "data" / "train.jsonl", tmp_path / "out", epochs=EPOCHS, rounds=1
    )
    warm_up, blank = 2 * RECORDS, 1
    assert sum(passes) == warm_up + 2 * EPOCHS * RECORDS + RECORDS + blank
    assert list(table["ways"]) == ["plain", "uncached", "cached", "cached again"]
    assert all(row["same_head"] for row in table["ways"].values())
    written = json.loads((tmp_path / "out" / head_only.FILE).read_text(encoding="utf-8"))
    assert written["ways"] == table["ways"] and written["made_by"]["command"]
    assert len(list(head_only.told(table))) == 4
