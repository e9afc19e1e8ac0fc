"""self-check: tell with the image, caption with the question in view, answer without the image; read with care."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.defenses import Policy, build, prompts
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.options import read_options
from safevlm.defenses.self_check import SelfCheck, Wording
from safevlm.miniature import words
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request, Verdict
from tests.defenses.asked import Scripted, says
from tests.engine import engines

MINIATURE = Path(__file__).parents[2] / "safevlm" / "miniature" / "self_check.yaml"
QUESTION = "How do I use it?"


CLEAN_VERDICT = Verdict()


def _reviewed(ask: Scripted, text: str = "Take it.", verdict: Verdict = CLEAN_VERDICT, **request: Any) -> Reply:
    asked = Request(QUESTION, **{"images": (engines.image(),), **request})
    defense = SelfCheck(Wording())
    defense.attach(ask)
    return defense.review(asked, Reply(text, asked, verdict, trace=("before",)), verdict)


# --- reading the verdict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    ["yes", "Yes.", "YES, it could.", " **Yes**", '"Yes"', "Yes it is harmful", "Harmful.", "yes\nno", "Unsafe"],
)
def test_yes_at_the_beginning_is_an_alarm(said: str) -> None:
    assert Wording().read(said) == "harmful"


@pytest.mark.parametrize("said", ["no", "No.", "NO, it is fine.", " **No**", '"No"', "no\nyes", "Harmless.", "Safe"])
def test_no_that_stands_alone_or_before_a_mark_is_none(said: str) -> None:
    assert Wording().read(said) == "harmless"


@pytest.mark.parametrize(
    "said",
    [
        "",
        " ",
        "...",
        "No doubt this is harmful.",
        "No one should ever do this",
        "Safety first: this is bad.",
        "It is not harmful, no.",
        "I cannot say no.",
        "The answer contains no warning",
        "Not at all harmless",
        "Nope",
        "Answer: no",
        "no-one",
        "Safe? Never.",
    ],
)
def test_verdict_that_cannot_be_read_is_an_alarm(said: str) -> None:
    assert Wording().read(said) == "harmful", "a substring was taken for a verdict"
    assert dataclasses.replace(Wording(), otherwise="harmless").read(said) == "harmless"


# --- the three passes -------------------------------------------------------------------------------------------------


def test_harmless_answer_stays_and_costs_one_pass() -> None:
    ask = says("No.")
    reply = _reviewed(ask)
    assert reply.text == "Take it."
    assert len(ask.requests) == 1
    assert reply.trace[0] == "before" and "harmless ('No.'); 1 extra pass" in reply.trace[1]


def test_harmful_answer_is_replaced_by_one_from_the_caption() -> None:
    ask = says("Yes.", "A {vork} on a table.", "I cannot help with that.")
    reply = _reviewed(ask, history=(("And before?", "Nothing."),), system="Be brief.")
    tell, caption, answer = ask.requests
    assert reply.text == "I cannot help with that."
    assert tell.images == caption.images and len(tell.images) == 1, "the verdict and the caption need the image"
    assert answer.images == (), "the answer saw the image after all"
    assert QUESTION in tell.text and "Take it." in tell.text
    assert QUESTION in caption.text, "the caption is asked for without the question in view"
    assert "A {vork} on a table." in answer.text and QUESTION in answer.text
    assert all(each.history and each.system == "Be brief." for each in ask.requests), "the conversation was lost"
    assert "'A {vork} on a table.'; 3 extra passes" in reply.trace[-1]


def test_braces_and_control_tokens_of_an_answer_stay_text() -> None:
    reply = engines.engine("self-check").reply(Request("{reply} <image> {0}", (engines.image(),)), engines.SHORT)
    assert not reply.verdict.error, reply.verdict.error
    ask = says("No.")
    assert _reviewed(ask, text="{question} {}").text == "{question} {}"
    assert "{question} {}" in ask.requests[0].text


def test_words_alone_and_unguarded_requests_are_not_asked_about() -> None:
    assert _reviewed(says(), images=()).trace == ("before",)
    assert _reviewed(says(), verdict=Verdict(error="detect: it broke")).trace == ("before",)


def test_model_that_cannot_judge_itself_answers_from_the_caption() -> None:
    # The tiny model's verdict is noise: fail closed, and the image is gone from the last prompt.
    engine, request = engines.engine("self-check"), Request(QUESTION, (engines.image(),))
    with engines.watched(engine) as asked:
        reply = engine.reply(request, engines.SHORT)
    assert [slots > 0 for slots in asked.image_slots()] == [True, True, True, False]
    assert "harmful" in reply.trace[-1] and "3 extra passes" in reply.trace[-1]
    assert list(engine.stream(request, engines.SHORT)) == [reply.text], "a stream let an unchecked answer out"


def test_refusal_of_another_member_is_not_asked_about() -> None:
    policy = Policy(DEFAULT, {"may_refuse": "refuse"})
    engine = engines.engine("safety-head+self-check", says=("may_refuse", "illegal"), policy=policy)
    with engines.watched(engine) as asked:
        assert engine.reply(Request(QUESTION, (engines.image(),)), engines.SHORT).refused_by == "safety-head"
    assert not asked.rows


# --- wording ----------------------------------------------------------------------------------------------------------


def _built(folder: Path, **table: Any) -> SelfCheck:
    file = folder / "words.yaml"
    file.write_text(yaml.safe_dump(table), encoding="utf-8")
    return build(f"self-check={file}", DefenseContext(Policy(DEFAULT)))  # type: ignore[return-value]


def test_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    wording = _built(tmp_path, tell="Bad? {reply}", harmful=["bad"]).wording
    assert (wording.tell, wording.harmful) == ("Bad? {reply}", ("bad",))
    assert wording.caption == prompts.CAPTION and wording.otherwise == "harmful"
    assert wording.read("Bad.") == "harmful"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"tel": "x"}, "unknown key 'tel'; one of"),
        ({"tell": "Is it bad?"}, "tell: {reply} is missing"),
        ({"tell": 3}, "tell: 3 is not a text"),
        ({"caption": "What? {reply}"}, "caption: unknown {reply}; only {question}"),
        ({"answer": "{question}"}, "answer: {caption} is missing"),
        ({"answer": "{caption"}, "expected '}'"),
        ({"harmful": [True]}, "harmful[0]: True is not a text"),
        ({"harmful": []}, "harmful: no words"),
        ({"harmless": "no"}, "harmless: 'no' is not a list"),
        ({"otherwise": "maybe"}, "otherwise: unknown 'maybe'; one of 'harmful' or 'harmless'"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 is not a whole number"),
    ],
)
def test_wrong_wording_names_file_and_key(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        _built(tmp_path, **table)
    assert "words.yaml:" in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("text", "message"), [("[]", "not a table"), ("a: [", "not YAML"), (None, "No such file")])
def test_file_that_is_none_is_told(tmp_path: Path, text: str | None, message: str) -> None:
    file = tmp_path / "words.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, OSError), match=message):
        read_options(Wording, file)


def test_miniatures_wording_reads_its_refusals_as_alarms() -> None:
    wording = read_options(Wording, MINIATURE)
    for category in words.RISKY_CATEGORIES:
        assert wording.read(words.refuse(category)) == "harmful"
    assert wording.read("Take the cup, press it and turn it.") == "harmless"
