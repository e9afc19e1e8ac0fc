"""A calibrated verdict: probabilities tempered, decided by risk, and untouched where nothing was calibrated."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from safevlm import defenses
from safevlm.defenses import DefenseContext, Policy
from safevlm.defenses.calibration import Calibration, likeliest, risk_of, tempered
from safevlm.defenses.policy import policy_from, read_policy
from safevlm.engine import Engine
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines

RISKY = [name for name in DEFAULT.category_names if name != CLEAN]
LEVEL = {SAFE: 0.6, "careful": 0.1, "may_refuse": 0.2, "must_refuse": 0.1}
CATEGORY = {"politics": 0.05, "illegal": 0.15, "insults": 0.1, "fairness": 0, "privacy": 0, "misleading": 0, CLEAN: 0.7}
SEEN = Verdict(SAFE, CLEAN, LEVEL, CATEGORY, source="safety-head")


def _policy(**row: object) -> Policy:
    return policy_from({"calibration": {"safety-head": row}}, DEFAULT, "test")


def test_verdict_of_a_detector_without_calibration_is_the_same_object() -> None:
    assert Policy(DEFAULT).calibrated(SEEN) is SEEN
    other = Verdict(SAFE, CLEAN, LEVEL, CATEGORY, source="another")
    assert _policy(risk=0.0).calibrated(other) is other, "one detector's threshold was used for another's verdict"


@pytest.mark.parametrize(("threshold", "seen"), [(0.0, True), (0.29, True), (0.31, False), (1.0, False)])
def test_risk_decides_in_place_of_the_arg_max(threshold: float, seen: bool) -> None:
    read = _policy(risk=threshold).calibrated(SEEN)
    assert (read.category, read.level) == (("illegal", "may_refuse") if seen else (CLEAN, SAFE))
    assert read.is_clean is not seen
    sure = Verdict("careful", "privacy", {"careful": 1.0, SAFE: 0.0}, {"privacy": 1.0, CLEAN: 0.0}, "safety-head")
    assert _policy(risk=1.0).calibrated(sure).category == "privacy", "a risk of 1 must reach every threshold"


def test_risk_by_category_asks_the_likeliest_one() -> None:
    table = dict.fromkeys(RISKY, 1.0) | {"illegal": 0.25}
    assert _policy(risk=table).calibrated(SEEN).category == "illegal"
    assert _policy(risk=dict.fromkeys(RISKY, 0.0) | {"illegal": 0.5}).calibrated(SEEN).is_clean


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_temperature_divides_logits_and_keeps_the_order(temperature: float) -> None:
    logits = torch.tensor([3.0, -1.0, 0.5, -20.0])
    given = dict(zip("abcd", logits.double().softmax(-1).tolist(), strict=True))
    want = (logits.double() / temperature).softmax(-1).tolist()
    got = tempered(given, temperature)
    assert list(got.values()) == pytest.approx(want, abs=1e-12)
    assert sorted(got, key=got.__getitem__) == sorted(given, key=given.__getitem__)
    if temperature == 1.0:
        assert got is given


def test_probability_of_zero_survives_a_temperature() -> None:
    assert math.fsum(tempered(CATEGORY, 3.0).values()) == pytest.approx(1)


def test_words_alone_and_errors_are_left_as_they_are() -> None:
    policy = _policy(risk=0.0)
    for verdict in (Verdict(source="safety-head"), Verdict(source="safety-head", error="detect: broken")):
        assert policy.calibrated(verdict) is verdict, "a request without an image was flagged"


def test_detector_without_levels_gets_the_mildest() -> None:
    read = Calibration(risk=0.2).read(Verdict(SAFE, CLEAN, {}, CATEGORY, "x"), DEFAULT)
    assert (read.category, read.level) == ("illegal", DEFAULT.level_names[1])


def test_risk_keeps_the_digits_of_a_small_one() -> None:
    tiny = {"illegal": 1e-20, "privacy": 2e-20, CLEAN: 1.0}
    assert risk_of(tiny) == pytest.approx(3e-20)
    assert likeliest(tiny, CLEAN) == "privacy"


MISTAKES = {
    "a number": ({"calibration": 0.5}, "calibration: 0.5 is not a table"),
    "unknown key": ({"calibration": {"safety-head": {"treshold": 1}}}, "unknown key 'treshold'"),
    "risk above 1": ({"calibration": {"safety-head": {"risk": 5}}}, "not a probability"),
    "risk that is no number": (
        {"calibration": {"safety-head": {"risk": math.nan}}},
        r"risk: .*finite",
    ),
    "a category left out": ({"calibration": {"safety-head": {"risk": {"privacy": 0.5}}}}, "every risky category"),
    "temperature of 0": ({"calibration": {"safety-head": {"temperatures": {"level": 0}}}}, "temperatures.level"),
    "unknown read-out": ({"calibration": {"safety-head": {"temperatures": {"mood": 1}}}}, "temperatures"),
}


@pytest.mark.parametrize(("table", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_calibration_is_named(table: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        policy_from(table, DEFAULT, "config.json: policy")


def test_threshold_of_risk_changes_what_the_engine_does(tmp_path: Path) -> None:
    """The same model, the same image: a low threshold hints, a threshold of 1 lets it through untouched."""
    model = engines.model()
    request = Request("How do I use it?", (engines.image(),))

    def trace(risk: float) -> tuple[str, ...]:
        file = tmp_path / "policy.yaml"
        file.write_text(json.dumps({"calibration": {"safety-head": {"risk": risk}}}), encoding="utf-8")
        setting = DefenseContext(read_policy(file, DEFAULT), has_head=True)
        guarded = Engine(engines.loaded(model), defenses.build("safety-head", setting), engines.CPU)
        return guarded.reply(request, engines.SHORT).trace

    assert trace(0.0) and not trace(1.0)
