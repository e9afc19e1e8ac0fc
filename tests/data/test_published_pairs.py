"""The published rows of security tensors keep their parts, and what is harmful in them is never what is learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from safevlm.data import published_pairs
from safevlm.data.pairs import Pair
from safevlm.data.records import RecordError

FOREIGN = "Take it, turn it."


def row(kind: str = "SA set", **changes: Any) -> dict[str, Any]:
    made = {"pic_path": "p/a.png", "input": "How?", "output": FOREIGN, "type": kind, "output_refuse": "No.", **changes}
    return {key: value for key, value in made.items() if value is not ...}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "p" / "a.png")
    return tmp_path


def _read(folder: Path, *rows: Any, name: str = "rows.json") -> list[Pair]:
    text = json.dumps(rows) if name.endswith(".json") else "".join(json.dumps(one) + "\n" for one in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return list(published_pairs.read(folder / name, folder))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_types_become_parts(folder: Path, name: str) -> None:
    made = _read(folder, row("SA set"), row("TCB set"), row("GB set"), name=name)
    assert [pair.part for pair in made] == ["malicious", "contrastive", "benign"]
    assert {(pair.question, pair.images) for pair in made} == {("How?", (folder / "p" / "a.png",))}
    assert published_pairs.is_published(folder / name)


def test_malicious_rows_learn_the_refusal_and_never_the_stored_answer(folder: Path) -> None:
    made = _read(folder, row("SA set"), row("SA set", output=...), row("GB set", output_refuse=...))
    assert [pair.answer for pair in made] == ["No.", "No.", FOREIGN]


@pytest.mark.parametrize("kind", ["Harmful", "SA", "sa set", "malicious"])
def test_unknown_type_is_an_error_that_names_line_and_choices(folder: Path, kind: str) -> None:
    with pytest.raises(RecordError, match=rf"rows\.jsonl:2: unknown type '{kind}'; one of \['SA set', 'TCB set', 'GB"):
        _read(folder, row(), row(kind), name="rows.jsonl")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"type": ...}, "`type`"),
        ({"input": ...}, "`input`"),
        ({"input": " "}, "`input`"),
        ({"pic_path": 3}, "`pic_path`"),
        ({"output_refuse": ...}, "`output_refuse`"),
        ({"type": "TCB set", "output": ""}, "`output`"),
        ({"pic_path": "p/gone.png"}, "gone.png; .*--images"),
    ],
)
def test_incomplete_row_is_an_error_that_names_its_line(folder: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(RecordError, match=rf"rows\.jsonl:2: .*{words}"):
        _read(folder, row(), row(**changes), name="rows.jsonl")


def test_training_records_are_not_taken_for_published_rows(folder: Path) -> None:
    (folder / "train.jsonl").write_text('{"id": "a", "image": "p/a.png", "conversations": []}\n', encoding="utf-8")
    assert not published_pairs.is_published(folder / "train.jsonl")


@pytest.mark.parametrize(
    ("name", "lies"),
    [
        ("../../Dataset/images/sa/b.png", "sa/b.png"),
        ("../../Dataset/images/sa/b.png", "images/sa/b.png"),
        ("../../Dataset/images/sa/b.png", "elsewhere/deep/b.png"),
        ("..\\..\\Dataset\\images\\sa\\b.png", "sa/b.png"),
    ],
)
def test_images_are_found_by_name_below_the_folder(folder: Path, name: str, lies: str) -> None:
    for path in (lies, "other/c.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((folder / "p" / "a.png").read_bytes())
    assert _read(folder, row(pic_path=name))[0].images == (folder / lies,)


def test_the_longest_end_of_a_path_decides_and_without_one_all_candidates_are_named(folder: Path) -> None:
    for path in ("sa/b.png", "gb/b.png"):
        (folder / path).parent.mkdir()
        (folder / path).write_bytes((folder / "p" / "a.png").read_bytes())
    assert _read(folder, row(pic_path="../../Dataset/images/sa/b.png"))[0].images == (folder / "sa/b.png",)
    with pytest.raises(RecordError, match=r"rows\.jsonl:1: .*several files: .*gb/b\.png.*sa/b\.png.*--images"):
        _read(folder, row(pic_path="../../Dataset/images/b.png"), name="rows.jsonl")
    with pytest.raises(RecordError, match=r"rows\.jsonl:1: no such image file .*c\.png.*--images DIR"):
        _read(folder, row(pic_path="../../Dataset/images/c.png"), name="rows.jsonl")
