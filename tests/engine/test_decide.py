"""What a defense decides for a model that is somewhere else is what it does in front of its own."""

from __future__ import annotations

import dataclasses

import pytest

from safevlm.defenses import Defense, Policy
from safevlm.engine import Decision, Engine
from safevlm.taxonomy import DEFAULT
from safevlm.types import Reply, Request, Verdict
from tests.engine import engines

RISK = ("must_refuse", "illegal")
POLICIES = {name: Policy(DEFAULT, {"must_refuse": name}) for name in ("allow", "hint", "refuse")}


@pytest.mark.parametrize("action", POLICIES)
def test_a_decision_is_what_the_engine_acts_on(action: str) -> None:
    engine = engines.engine("safety-head", says=RISK, policy=POLICIES[action])
    requests = engines.mixed_requests()
    for decided, reply in zip(engine.decide_all(requests), engine.reply_all(requests, engines.SHORT), strict=True):
        assert engines.same_verdict(decided.verdict, reply.verdict)
        if reply.refused_by:
            assert isinstance(decided, Reply) and (decided.text, decided.refused_by) == (reply.text, reply.refused_by)
            continue
        assert isinstance(decided, Decision)
        added = decided.rewritten.text.removeprefix(decided.request.text).strip("\n")
        assert [f"added to the question: {added}"] * bool(added) == list(reply.trace)


def test_a_defense_that_breaks_decides_to_refuse() -> None:
    class Broken(Defense):
        name = "broken"

        def detect(self, request: Request, features: object) -> Verdict:
            return Verdict()

        def rewrite(self, request: Request, verdict: Verdict) -> Request | Reply:
            return dataclasses.replace(request, images=())

    (decided,) = engines.engine("none").behind(Broken()).decide_all([Request("What is it?", (engines.image(1),))])
    assert isinstance(decided, Reply) and decided.refused_by == "broken" and decided.verdict.error


def test_without_its_llm_an_engine_looks_and_answers_nothing() -> None:
    own = engines.model(RISK)
    del own.model.language_model.layers[:]
    whole = engines.engine("safety-head", says=RISK)
    engine = Engine(dataclasses.replace(engines.loaded(own), has_lm=False), whole.defense, engines.CPU)
    request = Request("What is it?", (engines.image(1),))
    assert engines.same_verdict(engine.look(request), whole.look(request))
    assert isinstance(engine.decide_all([request])[0], Decision)
    with pytest.raises(ValueError, match="without its LLM"):
        engine.reply(request, engines.SHORT)
