"""Hints in training prompts stand where inference puts them, and no head reads them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

from safevlm.config import SafetyConfig
from safevlm.data import chat_messages
from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.defenses.policy import Policy
from safevlm.taxonomy import DEFAULT
from safevlm.training import run
from safevlm.training.hints import add_hints
from safevlm.types import Request, Verdict
from tests import tiny
from tests.training import workshop


def _record(category: str | None, level: str | None, images: int = 1) -> Record:
    return Record(
        id="a",
        place="a:1",
        messages=(chat_messages.user("What is it?", images), chat_messages.assistant("No.")),
        images=("a.png",) * images,
        safe_type=None if category is None else DEFAULT.category_id(category),
        safe_level=None if level is None else DEFAULT.level_id(level),
    )


def test_a_hint_in_training_is_the_mixers_at_inference():
    (hinted,) = add_hints([_record("privacy", "may_refuse")], DEFAULT)
    mixed = Policy(DEFAULT).act(Request("What is it?"), Verdict("may_refuse", "privacy"), "safety-head")
    assert hinted.lm_messages[0]["content"][-1]["text"] == mixed.text
    assert hinted.lm_messages[0]["content"][0] == {"type": "image"}, "the image's slot is lost"
    assert hinted.lm_messages[1] == chat_messages.assistant("No."), "the answer changed"


def test_clean_unlabelled_and_wordy_records_get_no_hint():
    plain = [
        _record("clean", "safe"),
        _record("privacy", "safe"),
        _record("clean", "must_refuse"),
        _record(None, None),
        _record("privacy", None),
        _record("privacy", "must_refuse", images=0),
    ]
    assert add_hints(plain, DEFAULT) == plain


def test_only_the_last_question_gets_the_hint_and_the_record_is_not_changed():
    first = _record("illegal", "must_refuse")
    record = Record(
        first.id,
        first.place,
        (*first.messages, chat_messages.user("Sure?"), chat_messages.assistant("Yes.")),
        first.images,
        1,
        3,
    )
    before = repr(record)
    (hinted,) = add_hints([record], DEFAULT)
    hint = prompts.hint(DEFAULT, "must_refuse", "illegal")
    assert [hint in str(message) for message in hinted.lm_messages] == [False, False, True, False]
    assert repr(record) == before
    assert hinted.messages == record.messages, "the user's own turns are what a head may read"


def _train_head(home: Path, name: str, rows: list[dict[str, Any]], hints: bool) -> dict[str, Tensor]:
    """Safety weights after a head-only run with a head that reads text."""
    records = workshop.save_rows(home / "data" / f"{name}.jsonl", rows)
    safety = SafetyConfig(**{**tiny.SAFETY, "reads_text": True})
    recipe = workshop.recipe(
        home / "base", records, home / name, model={"safety": safety}, data={"hints": hints}, loss={"lm": 0}
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return load_file(run.train(recipe) / "safety.safetensors")


@pytest.mark.slow
def test_hints_change_nothing_that_a_head_learns_and_questions_do(tmp_path: Path) -> None:
    workshop.stock_folder(tmp_path / "base")
    rows = workshop.rows(tmp_path / "data")
    plain = _train_head(tmp_path, "plain", rows, hints=False)
    hinted = _train_head(tmp_path, "hinted", rows, hints=True)
    assert workshop.same_tensors(plain, hinted), "a word that only risky records have reached the head"
    for row in rows:
        row["conversations"][0]["value"] += " Name the things."
    assert not workshop.same_tensors(plain, _train_head(tmp_path, "asked", rows, hints=False))
