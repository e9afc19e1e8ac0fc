"""Nobody looked is not safe: in Python, in JSON and in chat (tests/evaluation/test_not_looked.py: in evaluations)."""

from __future__ import annotations

import json

import pytest

from safevlm.defenses import Defense, Stack
from safevlm.serve.console.account import as_dict, why
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Reply, Request, Verdict
from tests.engine import engines

IMAGE_DETECTORS = ["safety-head", "safe-clip", "oracle", "fusion:max", "fusion:mean", "eta"]
NO_DETECTORS = ["none", "static-prompt", "self-check", "security-tensor:visual", "security-tensor:textual"]
WORDS, SEEN = Request("How do I use the cup?", id="words"), Request("What is it?", (engines.image(),), id="one")
TRUTHS = {"words": Verdict("careful", "privacy"), "one": Verdict(SAFE, CLEAN)}


@pytest.mark.parametrize("request_", [WORDS, SEEN], ids=["words", "an image"])
@pytest.mark.parametrize("name", NO_DETECTORS)
def test_without_a_detector_nobody_looked(name: str, request_: Request) -> None:
    verdict = engines.engine(name).look(request_)
    assert not verdict.looked and verdict.source == name


@pytest.mark.parametrize("name", IMAGE_DETECTORS)
def test_a_detector_of_images_looks_at_images_only(name: str) -> None:
    engine = engines.engine(name, truths=TRUTHS)
    verdict = engine.look(WORDS)
    assert not verdict.looked and verdict.is_clean, "a policy would act on a request that nobody looked at"
    assert engine.look(SEEN).looked


@pytest.mark.parametrize("name", ["static-prompt+safety-head", "safety-head+static-prompt", "none+safety-head"])
def test_somebody_of_a_stack_looked(name: str) -> None:
    engine = engines.engine(name, says=(SAFE, CLEAN))
    verdict = engine.look(SEEN)
    assert verdict.looked and verdict.source == "safety-head" and verdict.level_probabilities
    assert not engine.look(WORDS).looked


def test_who_looked_never_outweighs_a_risk_or_a_failure() -> None:
    def says(verdict: Verdict) -> Defense:
        made = Defense()
        made.detect = lambda request, features: verdict  # type: ignore[method-assign]  # a scripted detector
        return made

    looked, failed = Verdict(source="eyes"), Verdict.not_looked("a", error="detect: it broke")
    risky = Verdict("careful", "privacy", source="b")
    for verdicts, level, fails in (
        ((looked, failed), "safe", True),
        ((looked, risky), "careful", False),
        ((failed, risky), "careful", True),
    ):
        stack = Stack([says(each) for each in verdicts], DEFAULT.level_names)
        gravest = stack.detect(SEEN, None)  # type: ignore[arg-type]  # the scripts read no features
        assert (gravest.level, bool(gravest.error)) == (level, fails)
        assert "it broke" in gravest.error or not fails


def test_a_detector_that_failed_did_not_look() -> None:
    engine = engines.engine("oracle")  # it knows nothing of the request
    verdict = engine.look(SEEN)
    assert verdict.error and not verdict.looked


def test_json_says_not_looked_and_never_safe() -> None:
    table = json.loads(json.dumps(Verdict.not_looked("none").to_dict()))
    assert (table["looked"], table["level"], table["category"], table["source"]) == (False, None, None, "none")
    assert SAFE not in json.dumps(table)


@pytest.mark.parametrize(
    "verdict",
    [
        Verdict.not_looked("none"),
        Verdict.not_looked("oracle", error="detect: it broke"),
        Verdict(source="oracle"),
        Verdict("careful", "privacy", {"careful": 0.5, SAFE: 0.5}, {"privacy": 1.0}, "safety-head"),
    ],
)
def test_a_verdict_comes_back_from_json(verdict: Verdict) -> None:
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


@pytest.mark.parametrize(
    ("fields", "looked"),
    [
        ({"source": "none"}, False),
        ({"source": "safety-head"}, False),
        ({"source": "oracle"}, True),
        ({"source": "safety-head", "level_probabilities": {SAFE: 1.0}}, True),
        ({"source": "own", "level": "careful", "category": "privacy"}, True),
    ],
)
def test_verdicts_written_without_the_field_are_read(fields: dict[str, object], looked: bool) -> None:
    old = {"level": SAFE, "category": CLEAN, "level_probabilities": {}, "category_probabilities": {}, "error": ""}
    verdict = Verdict.from_dict(old | fields)
    assert verdict.looked == looked and verdict.source == fields["source"]


def test_a_reply_that_no_detector_saw_says_so() -> None:
    assert not Reply("hi", WORDS).verdict.looked


@pytest.mark.parametrize(("name", "request_"), [("none", SEEN), ("safety-head", WORDS)])
def test_chat_says_not_looked(name: str, request_: Request) -> None:
    reply = engines.engine(name).reply(request_, engines.SHORT)
    told = "\n".join(why(reply))
    assert told.startswith(f"not looked: {name} did not look")
    assert "level" not in told and "category" not in told
    assert as_dict(reply)["verdict"] == reply.verdict.to_dict()


def test_a_verdict_of_an_error_that_says_nothing_of_the_request_is_not_looked() -> None:
    failed = Verdict(error="out of memory")
    assert not failed.looked and failed.to_dict()["level"] is None and not failed.is_clean
    assert Verdict.from_dict(failed.to_dict()) == failed
    for told in (
        Verdict("careful", "privacy", error="x"),
        Verdict(level_probabilities={SAFE: 1.0}, error="x"),
        Verdict(source="oracle", error="x"),
    ):
        assert told.looked, "the detector looked, and a later hook failed"
