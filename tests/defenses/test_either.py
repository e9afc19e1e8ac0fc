"""A risk that only one read-out sees is a risk, and is acted on at its gravest."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from safevlm.defenses import Policy
from safevlm.defenses.calibration import Calibration
from safevlm.defenses.either import EitherDetector, strictest, whole
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines

QUESTION = "How do I use what you see?"
LIKELY = dict.fromkeys(DEFAULT.category_names, 0.0) | {CLEAN: 0.6, "insults": 0.3, "privacy": 0.1}
REFUSES_PRIVACY = Policy(DEFAULT, categories={"privacy": dict.fromkeys(DEFAULT.level_names[1:], "refuse")})


@pytest.mark.parametrize(
    ("said", "expected", "policy"),
    [
        ((SAFE, CLEAN), (SAFE, CLEAN), Policy(DEFAULT)),
        (("careful", "illegal"), ("careful", "illegal"), Policy(DEFAULT)),
        ((SAFE, "illegal"), ("must_refuse", "illegal"), Policy(DEFAULT)),
        ((SAFE, "illegal"), ("careful", "illegal"), Policy(DEFAULT, {"careful": "refuse", "must_refuse": "hint"})),
        (("careful", CLEAN), ("careful", "insults"), Policy(DEFAULT)),
        (("careful", CLEAN), ("careful", "privacy"), REFUSES_PRIVACY),
    ],
)
def test_half_a_verdict_is_read_as_the_policy_acts_on_most_strictly(
    said: tuple[str, str], expected: tuple[str, str], policy: Policy
) -> None:
    verdict = whole(Verdict(*said, category_probabilities=LIKELY), policy)
    assert (verdict.level, verdict.category) == expected
    assert verdict.is_clean == (said == (SAFE, CLEAN))


def test_a_verdict_of_nobody_stays_one() -> None:
    assert not whole(Verdict.not_looked("x"), Policy(DEFAULT)).looked


def test_a_clean_verdict_at_its_strictest_is_a_risk() -> None:
    verdict = strictest(Verdict(category_probabilities=LIKELY), Policy(DEFAULT))
    assert (verdict.level, verdict.category) == ("must_refuse", "insults")


@pytest.mark.parametrize("seen", [("must_refuse", CLEAN), (SAFE, "illegal")])
def test_the_engine_acts_on_half_a_verdict(seen: tuple[str, str]) -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    request = Request(QUESTION, (engines.image(),))
    reply = engines.engine("safety-head:either", says=seen, policy=policy).reply(request, engines.SHORT)
    assert reply.refused_by == "safety-head:either" and not reply.verdict.is_clean
    assert not engines.engine("safety-head", says=seen, policy=policy).reply(request, engines.SHORT).refused_by


def test_a_threshold_of_the_head_that_goes_by_the_category_hides_no_level() -> None:
    class Fixed:
        name = "safety-head"

        def detect(self, request: Request, features: Any) -> Verdict:
            return Verdict("must_refuse", CLEAN, {SAFE: 0.1, "must_refuse": 0.9}, LIKELY, self.name)

    policy = Policy(DEFAULT, calibration={"safety-head": Calibration(risk=0.99)})
    assert policy.calibrated(Fixed().detect(Request(QUESTION), None)).is_clean
    assert EitherDetector(Fixed(), policy).detect(Request(QUESTION), None).level == "must_refuse"
    low = dataclasses.replace(policy, calibration={"safety-head": Calibration(risk=0.2)})
    assert EitherDetector(Fixed(), low).detect(Request(QUESTION), None).category == "insults"
