"""A stack is one defense: the gravest verdict for all members, words in by order, words out in reverse."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from safevlm.defenses import Defense, DefenseContext, Inputs, Policy, Stack, build, prompts
from safevlm.defenses.base import ImageFeatures
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Reply, Request, Verdict
from tests.engine import engines


class Marker(Defense):
    """Sees what it is told to see, and writes its name on whatever passes."""

    def __init__(self, name: str, verdict: Verdict | None = None, answers: bool = False) -> None:
        self.name = name
        self.verdict = verdict or Verdict(source=name)
        self.answers = answers
        self.verdicts: list[Verdict] = []

    def detect(self, request: Request, features: ImageFeatures) -> Verdict:
        return self.verdict

    def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
        self.verdicts.append(verdict)
        if self.answers:
            return Reply(f"no, says {self.name}", request, verdict, refused_by=self.name)
        return dataclasses.replace(request, text=f"{request.text} {self.name}")

    def transform(self, inputs: Inputs, verdict: Verdict) -> Inputs:
        self.verdicts.append(verdict)
        return Inputs(torch.cat([inputs.input_ids, torch.tensor([ord(self.name)])]), inputs.pixel_values)

    def review(self, request: Request, reply: Reply, verdict: Verdict) -> Reply:
        self.verdicts.append(verdict)
        return dataclasses.replace(reply, text=f"{reply.text} {self.name}")


def _stack(*members: Defense) -> Stack:
    return Stack(members, DEFAULT.level_names)


REQUEST = Request("asked")
ASCENDING = [
    Verdict(SAFE, CLEAN),
    Verdict("careful", "misleading"),
    Verdict("may_refuse", "privacy"),
    Verdict("must_refuse", "politics"),
]
"""From nothing to the gravest."""
HARMLESS = [Verdict(SAFE, "illegal"), Verdict("must_refuse", CLEAN)]
"""Clean by SafeVLM's rule, whatever else they say."""


@pytest.mark.parametrize("grave", range(1, len(ASCENDING)))
@pytest.mark.parametrize("order", [1, -1], ids=["lighter first", "graver first"])
def test_gravest_verdict_wins(grave: int, order: int) -> None:
    verdicts = [*HARMLESS, *ASCENDING[: grave + 1]][::order]
    stack = _stack(*(Marker(str(place), verdict) for place, verdict in enumerate(verdicts)))
    assert stack.detect(REQUEST, None) == ASCENDING[grave]


@pytest.mark.parametrize("order", [1, -1])
def test_a_verdict_that_the_policy_allows_hides_none_that_it_acts_on(order: int) -> None:
    by_category = {"politics": {"must_refuse": "allow"}, "privacy": {"may_refuse": "hint"}}
    policy = Policy(DEFAULT, {"careful": "refuse"}, by_category)
    allowed, hinted, refused = Verdict("must_refuse", "politics"), Verdict("may_refuse", "privacy"), ASCENDING[1]
    for verdicts, strictest in (
        ([allowed, refused], refused),
        ([allowed, hinted], hinted),
        ([hinted, refused], refused),
    ):
        members = [Marker(str(place), verdict) for place, verdict in enumerate(verdicts[::order])]
        assert Stack(members, DEFAULT.level_names, policy).detect(REQUEST, None) == strictest


def test_a_stack_by_name_knows_its_policy() -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    stack = build("static-prompt+safety-head", DefenseContext(policy, has_head=True))
    assert isinstance(stack, Stack) and stack.policy is policy


def test_gravest_verdict_goes_to_every_member() -> None:
    members = [Marker("a"), Marker("b", ASCENDING[2]), Marker("c", ASCENDING[1])]
    stack = _stack(*members)
    verdict = stack.detect(REQUEST, None)
    stack.rewrite(REQUEST, verdict)
    stack.transform(Inputs(torch.tensor([1])), verdict)
    stack.review(REQUEST, Reply("said", REQUEST), verdict)
    for member in members:
        assert member.verdicts == [ASCENDING[2]] * 3, f"member {member.name} acts on another verdict than the gravest"


def test_words_and_tensors_go_in_by_order_and_words_out_in_reverse() -> None:
    stack, verdict = _stack(Marker("a"), Marker("b"), Marker("c")), Verdict()
    assert stack.rewrite(REQUEST, verdict) == Request("asked a b c")
    assert stack.transform(Inputs(torch.tensor([1])), verdict).input_ids.tolist() == [1, *map(ord, "abc")]
    assert stack.review(REQUEST, Reply("said", REQUEST), verdict).text == "said c b a"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_answer_of_one_member_stops_the_rest(place: int) -> None:
    members = [Marker(name, answers=index == place) for index, name in enumerate("abc")]
    reply = _stack(*members).rewrite(REQUEST, Verdict())
    assert isinstance(reply, Reply) and reply.refused_by == "abc"[place]
    asked = [member.name for member in members if member.verdicts]
    assert asked == list("abc"[: place + 1]), "a member behind the one that answered was asked, too"


def test_name_joins_the_members() -> None:
    assert _stack(Marker("a"), Marker("b")).name == "a+b"
    name = "static-prompt+safety-head"
    assert build(name, DefenseContext(Policy(DEFAULT), has_head=True)).name == name


def _raises(request: Request, features: ImageFeatures) -> Verdict:
    raise RuntimeError("it broke")


NAN = Verdict(SAFE, CLEAN, {SAFE: math.nan}, {CLEAN: math.nan})
FAILS: dict[str, Callable[[Request, ImageFeatures], Any]] = {
    "raises": _raises,
    "gives an error": lambda request, features: Verdict(error="it broke"),
    "gives nothing": lambda request, features: None,
    "gives nan": lambda request, features: NAN,
}


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("others", [ASCENDING[0], ASCENDING[3]])
@pytest.mark.parametrize("how", FAILS)
def test_a_member_that_fails_is_told_and_hides_nothing_that_another_saw(how: str, others: Verdict, order: int) -> None:
    broken = Marker("b")
    broken.detect = FAILS[how]  # type: ignore[method-assign]  # what this is about
    verdict = _stack(*[Marker("a", others), broken][::order]).detect(REQUEST, None)
    assert "b: " in verdict.error, "a failure is not told, or not whose it is"
    assert (verdict.level, verdict.category) == (others.level, others.category)


ALARM = ("must_refuse", "illegal")


@pytest.mark.parametrize("how", FAILS)
@pytest.mark.parametrize("name", ["safety-head+safe-clip", "fusion:max", "fusion:mean"])
def test_errors_that_are_allowed_let_no_alarm_of_another_detector_through(name: str, how: str) -> None:
    """`on_error="allow"` is about what nobody could look at."""
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    request = Request("What is in the picture?", (engines.image(),))
    for place in range(2):
        engine = engines.engine(name, says=ALARM, policy=policy, on_error="allow")
        whole = engine.defense.members if isinstance(engine.defense, Stack) else engine.defense.detector.members
        whole[place].detect = FAILS[how]
        reply = engine.reply(request, engines.SHORT)
        assert reply.refused_by and reply.verdict.category == ALARM[1], "the alarm went with the failure"
        assert whole[place].name in reply.verdict.error, "nobody is told that a detector failed"
        assert any("failed" in line for line in reply.trace)
        whole[1 - place].detect = FAILS[how]
        assert not engine.reply(request, engines.SHORT).refused_by, "nobody looked, and the caller chose to go on"


def test_a_hint_is_said_though_another_detector_failed_and_errors_are_allowed() -> None:
    engine = engines.engine("safety-head+safe-clip", says=("careful", "privacy"), on_error="allow")
    engine.defense.members[1].detect = _raises
    reply = engine.reply(Request("What is in the picture?", (engines.image(),)), engines.SHORT)
    assert prompts.hint(DEFAULT, "careful", "privacy") in reply.prompt
    assert reply.verdict.error and any("it broke" in line for line in reply.trace)
    assert not any(line.startswith("unguarded") for line in reply.trace)


@pytest.mark.parametrize("name", ["safety-head+static-prompt", "static-prompt+safety-head"])
def test_stacked_prompts_both_stand_around_the_question(name: str) -> None:
    question = "What is in the picture?"
    engine = engines.engine(name, says=("careful", "privacy"))
    reply = engine.reply(Request(question, (engines.image(),)), engines.SHORT)
    hint = prompts.hint(DEFAULT, "careful", "privacy")
    assert reply.prompt == f"USER: <image>\n{prompts.STATIC_PROMPT}\n{question}\n{hint} ASSISTANT:"


def test_refusal_of_the_head_stops_the_stack_before_the_model() -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    engine = engines.engine("static-prompt+safety-head", says=("must_refuse", "illegal"), policy=policy)
    request = Request("What is in the picture?", (engines.image(),))
    with engines.watched(engine) as asked:
        reply = engine.reply(request, engines.SHORT)
    assert not asked.rows
    assert reply.refused_by == "safety-head", "the user cannot see which member refused"
    assert reply.request is request, "the reply carries a rewritten request, not the user's"
