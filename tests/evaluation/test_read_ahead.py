"""`ask` reads the images of the next batch while the model answers one: same replies, and one batch ahead at most."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from safevlm.engine import Engine, reading
from safevlm.evaluation.runs import ask as asking
from safevlm.evaluation.runs.files import REPLIES
from tests.engine import engines
from tests.evaluation.world_of_runs import write_suite

SUITE, BATCH = "miniature", 2


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Eight requests with an image, an image of its own each."""
    data = write_suite(tmp_path / "data", 2, ("harmful_seen", "harmful_unseen", "typographic", "benign"))
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        row["image"] = f"{number}.png"
        engines.image(number).save(data / row["image"])
    (data / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def _ask(data: Path, out: Path, engine: Engine, **how: Any) -> list[dict[str, Any]]:
    asking.ask(SUITE, data, "m", "none", out, batch_size=BATCH, max_new_tokens=3, engine=engine, **how)
    rows = [json.loads(line) for line in (out / REPLIES).read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def _reads(monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[str]], threading.Condition]:
    """Ids of every batch that the thread has begun to read."""
    begun: list[list[str]] = []
    told, real = threading.Condition(), reading.images_of

    def noted(requests: Any, *how: Any) -> Any:
        with told:
            begun.append([request.id for request in requests])
            told.notify_all()
        return real(requests, *how)

    monkeypatch.setattr(reading, "images_of", noted)
    return begun, told


def test_the_next_batch_is_being_read_before_the_replies_to_one_are_there_and_no_more_are(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, answered = engines.engine(), []
    begun, told = _reads(monkeypatch)
    generate = engine.model.generate

    def waiting(**inputs: Any) -> Any:
        answered.append(len(inputs["input_ids"]))
        last = len(answered) == 4
        with told:
            assert told.wait_for(lambda: len(begun) >= len(answered) or last, timeout=30), "nothing was read ahead"
            assert len(begun) <= len(answered), "more than one batch was read ahead"
        return generate(**inputs)

    with engines.generating(engine, waiting):
        rows = _ask(data, tmp_path / "out", engine)
    assert answered == [BATCH] * 4
    asked = [row["id"] for row in rows]
    assert begun == [asked[start : start + BATCH] for start in range(BATCH, len(asked), BATCH)]


def test_replies_and_resuming_are_what_they_are_without(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, _ = _reads(monkeypatch)
    ahead = _ask(data, tmp_path / "ahead", engines.engine())
    lines = (tmp_path / "ahead" / REPLIES).read_text().splitlines(keepends=True)
    (tmp_path / "ahead" / REPLIES).write_text("".join(lines[:3]))
    assert _ask(data, tmp_path / "ahead", engines.engine()) == ahead
    assert len(begun) == 3 + 2
    monkeypatch.setattr(Engine, "read_ahead", lambda self, requests: None)
    assert _ask(data, tmp_path / "plain", engines.engine()) == ahead


def test_an_image_that_cannot_be_used_fails_its_own_request_alone(data: Path, tmp_path: Path) -> None:
    whole = _ask(data, tmp_path / "whole", engines.engine())
    spoilt = whole[BATCH + 1]["id"]  # in a batch that is read ahead
    names = {row["id"]: row["image"] for row in map(json.loads, (data / "eval.jsonl").read_text().splitlines())}
    (data / names[spoilt]).write_bytes(b"no image")
    rows = _ask(data, tmp_path / "out", engines.engine(), partial=True)
    assert {row["id"] for row in whole} - {row["id"] for row in rows} == {spoilt}
    assert [row["id"] for row in asking.read_failed(tmp_path / "out")] == [spoilt]
    kept = {row["id"]: row["reply"] for row in whole}
    assert all(row["reply"] == kept[row["id"]] for row in rows)
    with pytest.raises(ValueError, match=names[spoilt]):
        _ask(data, tmp_path / "strict", engines.engine())
