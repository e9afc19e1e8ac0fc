"""Hints in training prompts stand where inference puts them."""

from __future__ import annotations

from safevlm.data import chat
from safevlm.data.records import Record
from safevlm.defenses import prompts
from safevlm.defenses.policy import Policy
from safevlm.taxonomy import DEFAULT
from safevlm.training.hints import add_hints
from safevlm.types import Request, Verdict


def _record(category: str | None, level: str | None, images: int = 1) -> Record:
    return Record(
        id="a",
        place="a:1",
        messages=(chat.user("What is it?", images), chat.assistant("No.")),
        images=("a.png",) * images,
        safe_type=None if category is None else DEFAULT.category_id(category),
        safe_level=None if level is None else DEFAULT.level_id(level),
    )


def test_a_hint_in_training_is_the_mixers_at_inference():
    (hinted,) = add_hints([_record("privacy", "may_refuse")], DEFAULT)
    mixed = Policy(DEFAULT).act(Request("What is it?"), Verdict("may_refuse", "privacy"), "safety-head")
    assert hinted.messages[0]["content"][-1]["text"] == mixed.text
    assert hinted.messages[0]["content"][0] == {"type": "image"}, "the image's slot is lost"
    assert hinted.messages[1] == chat.assistant("No."), "the answer changed"


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
        first.id, first.place, (*first.messages, chat.user("Sure?"), chat.assistant("Yes.")), first.images, 1, 3
    )
    before = repr(record)
    (hinted,) = add_hints([record], DEFAULT)
    hint = prompts.hint(DEFAULT, "must_refuse", "illegal")
    assert [hint in str(message) for message in hinted.messages] == [False, False, True, False]
    assert repr(record) == before
