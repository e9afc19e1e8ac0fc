"""Rows in and out: what is wrong is named with file and line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.data.row_log import append_rows, drop_half_written_line
from safevlm.evaluation.runs import files
from safevlm.evaluation.runs.files import numbered_rows, read_scores
from safevlm.evaluation.suites import load_suite
from safevlm.evaluation.suites.miniature import load
from safevlm.miniature.world import BY_NAME
from tests.evaluation.world_of_runs import row, write_rows, write_suite

GOOD = row("a", "harmful_seen", BY_NAME["vork"])


def test_a_malformed_line_names_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    with pytest.raises(ValueError, match=r"x\.jsonl:3: not JSON"):
        list(numbered_rows(tmp_path / "x.jsonl"))


def test_a_half_written_last_line_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_rows(path, [{"id": "ä"}, {"id": "b"}])
    complete = path.read_bytes()
    path.write_bytes(complete + '{"id": "ç'.encode()[:-1])
    assert drop_half_written_line(path)
    assert path.read_bytes() == complete
    assert not drop_half_written_line(path)
    assert not drop_half_written_line(tmp_path / "missing")


def test_a_file_that_is_only_half_a_line_becomes_empty(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"id"')
    assert drop_half_written_line(tmp_path / "x.jsonl")
    assert (tmp_path / "x.jsonl").read_bytes() == b""


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    files.write_rows(path, [{"id": "a"}])
    with pytest.raises(ValueError, match="not finite"):
        files.write_rows(path, [{"id": "b", "value": float("nan")}])
    assert [found["id"] for _, found in numbered_rows(path)] == ["a"]
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


@pytest.mark.parametrize("value", [2, -0.1, "1", True])
def test_a_score_outside_0_to_1_is_an_error(tmp_path: Path, value: object) -> None:
    score = {"id": "a", "group": "benign", "judge": "j", "value": value, "label": "right", "raw": ""}
    (tmp_path / "scores.jsonl").write_text(json.dumps(score) + "\n")
    with pytest.raises(ValueError, match="value"):
        read_scores(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": "harmful_sen"}, "unknown group 'harmful_sen'; one of"),
        ({"task": "eat"}, "unknown task"),
        ({"category": "politcs"}, "unknown category"),
        ({"level": "high"}, "unknown level"),
        ({"level": "safe"}, "does not fit group"),
        ({"category": "illegal"}, "is not that of"),
        ({"things": ["vorc"]}, "no thing is called"),
        ({"things": []}, "empty"),
        ({"image": None}, "needs an image"),
        ({"image": "gone.png"}, r"image .*gone\.png is missing"),
        ({"question": None}, "question: None is not a text"),
        ({"group": "harmful_text"}, "has no images"),
        ({"id": "a"}, "stands here twice"),
    ],
)
def test_a_misspelt_group_or_other_mistake_names_file_and_line(tmp_path: Path, change: dict, message: str) -> None:
    write_suite(tmp_path)
    write_rows(tmp_path, [GOOD, GOOD | {"id": "b"} | change])
    with pytest.raises((ValueError, FileNotFoundError), match=rf"eval\.jsonl:2: .*{message}"):
        load(tmp_path)


def test_a_missing_suite_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m safevlm\.miniature data"):
        load(tmp_path)


def test_an_unknown_or_empty_suite_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "eval.jsonl").write_text("")
    with pytest.raises(ValueError, match="no samples"):
        load_suite("miniature", tmp_path)
    with pytest.raises(ValueError, match="--suite: unknown 'rtvml'"):
        load_suite("rtvml", tmp_path)


def test_samples_carry_what_the_judge_needs(tmp_path: Path) -> None:
    sample = load(write_suite(tmp_path))[0]
    assert sample.is_harmful
    assert sample.expected == {"task": "use", "things": ["vork"]}
    assert sample.request.images == (tmp_path / "p.png",)
