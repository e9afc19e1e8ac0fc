"""A request that no detector looked at: null in the run's files, unscored, `not looked` in the gallery."""

from __future__ import annotations

from pathlib import Path

import pytest

from safevlm.evaluation.judges.judging import judge
from safevlm.evaluation.metrics.detector import confusion, head_accuracy
from safevlm.evaluation.report.page import report
from safevlm.evaluation.runs.ask import ask
from safevlm.evaluation.runs.files import Row, read_replies, write_rows
from safevlm.evaluation.runs.run import Run, read_run
from safevlm.types import Verdict
from tests.evaluation.world_of_runs import Parrot, helpful, write_suite


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run whose detector looked at every second request only."""
    ask(
        "miniature",
        write_suite(tmp_path / "data"),
        "m",
        "none",
        tmp_path / "run",
        engine=Parrot(helpful, source="head"),
    )
    rows = read_replies(tmp_path / "run")
    write_rows(tmp_path / "run/replies.jsonl", [_unseen(row) if at % 2 else row for at, row in enumerate(rows)])
    judge(tmp_path / "run")
    return tmp_path / "run"


def _unseen(row: Row) -> Row:
    return row | {"verdict": Verdict.not_looked("head").to_dict()}


def _accuracies(run: Run) -> dict[str, dict[str, float]]:
    return head_accuracy(run)["sets"]["all"]


def test_what_was_not_looked_at_is_unscored(out: Path) -> None:
    rows = [row for row in read_run("r", out).replies if row["group"] in ("harmful_seen", "benign", "lookalike")]
    seen = [row for row in rows if row["verdict"]["looked"]]
    right = sum(row["verdict"]["category"] == row["truth"]["category"] for row in seen)
    found = _accuracies(read_run("r", out))["category"]
    assert 0 < len(seen) < len(rows)
    assert (found["n"], found["unscored"]) == (len(seen), len(rows) - len(seen))
    assert found["value"] == pytest.approx(right / len(seen))
    assert confusion(read_run("r", out), "level").counts.total() == len(seen)


def test_runs_from_before_the_field_count_the_same(out: Path) -> None:
    new = _accuracies(read_run("r", out))
    rows = read_replies(out)
    old = [{key: value for key, value in row["verdict"].items() if key != "looked"} for row in rows]
    old = [
        verdict | {"level": verdict["level"] or "safe", "category": verdict["category"] or "clean"} for verdict in old
    ]
    write_rows(out / "replies.jsonl", [row | {"verdict": verdict} for row, verdict in zip(rows, old, strict=True)])
    assert _accuracies(read_run("r", out)) == new


def test_a_run_in_which_nobody_looked_has_no_detector(out: Path) -> None:
    write_rows(out / "replies.jsonl", [_unseen(row) for row in read_replies(out)])
    assert not read_run("r", out).has_detector


def test_the_gallery_says_not_looked(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "page"
    report({"r": out}, page)
    html = (page / "report.html").read_text(encoding="utf-8")
    assert "not looked" in html and "saw " in html
