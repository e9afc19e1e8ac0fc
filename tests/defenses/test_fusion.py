"""Several detectors as one: calibrated first, one vision pass, a verdict of its own name, and no alarm lost."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest

from safevlm.defenses import Policy, prompts
from safevlm.defenses.calibration import Calibration, risk_of, tempered
from safevlm.defenses.fusion import RULES, Fusion, mean, riskiest
from safevlm.defenses.mixer import Mixer
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Generation, Request, Verdict
from tests import tiny
from tests.engine import engines

RISK = ("may_refuse", "illegal")
EVERY = pytest.mark.parametrize("rule", RULES)


def _verdict(risk: float, seen: bool | None = None, category: str = "illegal", source: str = "one") -> Verdict:
    """A verdict of this risk; `seen`: whether its own rule calls it risky, by default from 0.5 on."""
    named = RISK if (risk >= 0.5 if seen is None else seen) else (SAFE, CLEAN)
    level = dict.fromkeys(DEFAULT.level_names, 0.0) | {SAFE: 1 - risk, "may_refuse": risk}
    return Verdict(
        named[0],
        category if named[1] != CLEAN else CLEAN,
        level,
        dict.fromkeys(DEFAULT.category_names, 0.0) | {CLEAN: 1 - risk, category: risk},
        source,
    )


class Fixed:
    """A detector that sees what it is told to see."""

    def __init__(self, verdict: Verdict) -> None:
        self.name, self.verdict = verdict.source, verdict

    def detect(self, request: Request, features: Any) -> Verdict:
        return self.verdict


class OneImage:
    images = 1


def _fused(rule: str, *verdicts: Verdict, policy: Policy | None = None) -> Verdict:
    named = [dataclasses.replace(verdict, source=name) for verdict, name in zip(verdicts, "abc", strict=False)]
    return Fusion(rule, [Fixed(verdict) for verdict in named], policy or Policy(DEFAULT)).detect(
        Request("What?"), OneImage()
    )


@pytest.mark.parametrize("order", [1, -1])
def test_max_is_the_member_with_more_risk(order: int) -> None:
    pair = [_verdict(0.6), _verdict(0.9, category="privacy")][::order]
    assert riskiest(pair, Policy(DEFAULT)).category == "privacy"
    milder = riskiest([_verdict(0.1), _verdict(0.3)][::order], Policy(DEFAULT))
    assert risk_of(milder.category_probabilities) == pytest.approx(0.3)


@pytest.mark.parametrize("order", [1, -1])
def test_max_never_drops_an_alarm_for_a_higher_number(order: int) -> None:
    below_tau, alarm = _verdict(0.58, seen=False), _verdict(0.52, seen=True)
    assert not riskiest([below_tau, alarm][::order], Policy(DEFAULT)).is_clean


@pytest.mark.parametrize("order", [1, -1])
def test_max_hides_no_alarm_that_the_policy_acts_on_behind_one_that_it_allows(order: int) -> None:
    policy = Policy(DEFAULT, categories={"privacy": dict.fromkeys(DEFAULT.level_names[1:], "allow")})
    allowed, acted_on = _verdict(0.99, category="privacy"), _verdict(0.6)
    assert riskiest([allowed, acted_on][::order], policy) is acted_on


@pytest.mark.parametrize("bits", [-1e-7, 0.0, 1e-7])
def test_max_of_members_that_are_equally_sure_hangs_on_no_last_bit(bits: float) -> None:
    pair = [_verdict(1 - 1e-7), _verdict(1 - 1e-7 + bits, category="privacy")]
    assert riskiest(pair, Policy(DEFAULT)) is pair[0]


def test_max_of_small_risks_is_still_the_larger() -> None:
    assert riskiest(pair := [_verdict(2e-9), _verdict(3e-9)], Policy(DEFAULT)) is pair[1]


def test_mean_is_the_arg_max_of_the_means() -> None:
    fused = _fused("mean", _verdict(0.9), _verdict(0.4, category="privacy"))
    assert fused.category_probabilities["illegal"] == pytest.approx(0.45)
    assert fused.category_probabilities["privacy"] == pytest.approx(0.2)
    assert fused.category_probabilities[CLEAN] == pytest.approx(0.35)
    assert (fused.level, fused.category) == RISK
    assert _fused("mean", _verdict(0.9), _verdict(0.0)).is_clean, "0.45 against 0.55"
    assert mean([_verdict(0.9)], Policy(DEFAULT)).category_probabilities == _verdict(0.9).category_probabilities


@EVERY
def test_members_are_read_through_their_own_calibration(rule: str) -> None:
    cold = {"a": Calibration({"category": 0.5}, risk=0.95)}
    one, other = _verdict(0.7), _verdict(0.2)
    fused = _fused(rule, one, other, policy=Policy(DEFAULT, calibration=cold))
    expected = risk_of(tempered(one.category_probabilities, 0.5))
    found = risk_of(fused.category_probabilities)
    assert found == pytest.approx(expected if rule == "max" else (expected + 0.2) / 2)
    if rule == "max":
        assert fused.is_clean, "the member's own threshold was ignored"


@EVERY
def test_fusion_has_a_calibration_of_its_own(rule: str) -> None:
    members = [Fixed(_verdict(0.8, source="a")), Fixed(_verdict(0.6, source="b"))]

    def seen(**calibration: Calibration) -> bool:
        policy = Policy(DEFAULT, calibration={name.replace("_", ":"): row for name, row in calibration.items()})
        return not Mixer(Fusion(rule, members, policy), policy).detect(Request("What?"), OneImage()).is_clean

    assert seen()
    assert not seen(**{f"fusion_{rule}": Calibration(risk=0.9)})
    assert seen(b=Calibration(risk=0.9)), "one member's threshold switched the other member off"


@EVERY
def test_fusion_sees_acts_and_looks_once(rule: str) -> None:
    engine = engines.engine(f"fusion:{rule}", says=RISK)
    requests = engines.mixed_requests()
    with engines.tower_calls(engine) as calls:
        replies = engine.reply_all(requests, Generation(max_new_tokens=1))
    assert calls == [sum(len(request.images) for request in requests)], "a member ran the tower once more"
    for reply in replies:
        assert (prompts.hint(DEFAULT, *RISK) in reply.prompt) == bool(reply.request.images)
        assert reply.verdict.source == f"fusion:{rule}"


BREAKS: dict[str, Callable[[Verdict], Verdict]] = {
    "nan": lambda verdict: dataclasses.replace(verdict, category_probabilities={CLEAN: math.nan, "illegal": 0.1}),
    "no probabilities": lambda verdict: dataclasses.replace(verdict, category_probabilities={}),
    "error": lambda verdict: dataclasses.replace(verdict, error="it broke"),
}


@EVERY
@pytest.mark.parametrize("how", BREAKS)
@pytest.mark.parametrize("place", [0, 1])
def test_member_that_fails_refuses(rule: str, how: str, place: int) -> None:
    engine = engines.engine(f"fusion:{rule}", says=(SAFE, CLEAN))
    member = engine.defense.detector.members[place]
    whole = member.detect
    member.detect = lambda request, features: BREAKS[how](whole(request, features))
    reply = engine.reply(Request("What is it?", (engines.image(),)), engines.SHORT)
    assert reply.refused_by == f"fusion:{rule}" and member.name in reply.verdict.error, reply.verdict.error
    assert not engine.reply(Request("What is it?"), engines.SHORT).refused_by, "words alone need no member"


@EVERY
def test_fusion_without_a_head_says_so(rule: str) -> None:
    with pytest.raises(ValueError, match="no safety head"):
        engines.engine(f"fusion:{rule}", own=engines.model(**tiny.BARE))
