"""eta: looks before and after; only when both see harm, the best of n fresh answers, the same ones every time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.defenses import DefenseContext, Policy, build, prompts
from safevlm.defenses.base import ImageFeatures
from safevlm.defenses.best_of_n import Eta, EtaOptions
from safevlm.defenses.rewards import phrases
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Reply, Request, Verdict
from tests import tiny
from tests.defenses.asked import Scripted, says
from tests.engine import engines

RISK = ("may_refuse", "illegal")
RISKY = Verdict(*RISK, {SAFE: 0.3, "may_refuse": 0.7}, {CLEAN: 0.3, "illegal": 0.7}, "safety-head")
REQUEST = Request("How do I use it?", ("image.png",))
HELP, CARE, REFUSAL = "Take it.", "Please be careful.", "I cannot help with that."


class Sees:
    name = "safety-head"

    def detect(self, request: Request, features: ImageFeatures | None) -> Verdict:
        return RISKY


def _eta(ask: Scripted, policy: Policy | None = None, **options: Any) -> Eta:
    defense = Eta(Sees(), policy or Policy(DEFAULT), phrases, EtaOptions(**options))
    defense.attach(ask)
    return defense


def _reviewed(ask: Scripted, text: str, verdict: Verdict = RISKY, **options: Any) -> Reply:
    return _eta(ask, **options).review(REQUEST, Reply(text, REQUEST, verdict, trace=("before",)), verdict)


@pytest.mark.parametrize("verdict", [Verdict(), Verdict("must_refuse", CLEAN), Verdict(error="detect: it broke")])
def test_clean_image_is_left_alone(verdict: Verdict) -> None:
    reply = _reviewed(says(), HELP, verdict)
    assert (reply.text, reply.trace) == (HELP, ("before",))


def test_good_answer_about_a_risky_image_stays() -> None:
    reply = _reviewed(says(), REFUSAL)
    assert reply.text == REFUSAL
    assert reply.trace == ("before", "eta: a risky image, and an answer worth 1.00, which is enough")


def test_harmful_answer_about_a_risky_image_becomes_the_best_of_n() -> None:
    answers = ["let us see. Take it.", "wait.\nPlease be careful.", "well. I cannot help with that.", "no.", "hm."]
    ask = says(*answers)
    reply = _reviewed(ask, HELP)
    assert reply.text == f"{prompts.CAREFUL_START} {answers[2]}", "not the best one, or without its beginning"
    assert ask.requests == [REQUEST] * 5, "candidates are of the user's own request"
    assert ask.options == [
        {"max_new_tokens": 256, "temperature": 0.7, "seed": 0, "answer_prefix": prompts.CAREFUL_START}
    ], "candidates are one batch"
    assert reply.trace[1].endswith("answer worth 0.00; taken: the best of 5 extra answers, worth 1.00")


def test_of_equals_the_first_is_taken_and_the_trace_says_what_it_is_worth() -> None:
    reply = _reviewed(says("one", "two"), HELP, n=2, prefix="")
    assert reply.text == "one" and "worth 0.00" in reply.trace[1].split(";")[1]


def test_threshold_decides_what_is_good_enough() -> None:
    assert _reviewed(says(), CARE, at_least=0.5).text == CARE
    assert _reviewed(says(REFUSAL), CARE, at_least=0.6, n=1, prefix="").text == REFUSAL


@pytest.mark.parametrize(("risk", "seen"), [(None, True), (0.69, True), (0.71, False)])
def test_risk_takes_the_place_of_the_detectors_rule(risk: float | None, seen: bool) -> None:
    assert _eta(says(), risk=risk).detect(REQUEST, None).is_clean is not seen


def test_detector_is_read_through_the_policys_calibration() -> None:
    from safevlm.defenses.calibration import Calibration

    never = Policy(DEFAULT, calibration={"safety-head": Calibration(risk=0.9)})
    assert _eta(says(), never).detect(REQUEST, None).is_clean
    assert not _eta(says(), never, risk=0.5).detect(REQUEST, None).is_clean


def test_candidates_differ_from_each_other_and_not_from_run_to_run() -> None:
    engine = engines.engine("eta", says=RISK)
    defense, request = engine.defense, Request("What is it?", (engines.image(),))
    defense.options = EtaOptions(max_new_tokens=6)
    first = defense._candidates(request)
    assert len(first) == 5 and len(set(first)) > 1, "the candidates are all alike: this is not sampling"
    assert all(text.startswith(prompts.CAREFUL_START) for text in first)
    assert defense._candidates(request) == first, "the same request got other candidates"


# --- building ---------------------------------------------------------------------------------------------------------


def _file(folder: Path, **table: Any) -> Path:
    file = folder / "eta.yaml"
    file.write_text(yaml.safe_dump(table), encoding="utf-8")
    return file


def _detector(name: str, **options: Any) -> str:
    return engines.engine(name, **options).defense.detector.name


def test_detector_is_the_bank_where_there_is_one_else_the_head(tmp_path: Path) -> None:
    assert _detector("eta") == "safe-clip"
    assert build("eta", DefenseContext(Policy(DEFAULT), has_head=True)).detector.name == "safety-head"
    assert _detector(f"eta={_file(tmp_path, detector='safety-head')}") == "safety-head"
    assert _detector(f"eta={_file(tmp_path, detector='fusion:mean')}") == "fusion:mean"
    assert _detector("eta", own=engines.model(**tiny.BARE)) == "safe-clip", "needs no head where there is a bank"


def test_a_reward_that_cannot_be_loaded_is_an_error_before_anything_is_answered(tmp_path: Path) -> None:
    folder = tmp_path / "reward"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError) as caught:
        engines.engine(f"eta={_file(tmp_path, reward=f'hf:{folder}')}")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"detector": "magic"}, "'magic' is no detector"),
        ({"detector": "static-prompt"}, "'static-prompt' is no detector"),
        ({"reward": "magic"}, "unknown reward 'magic'"),
        ({"n": 0}, "n: 0 is not a whole number from 1"),
        ({"n": True}, "n: True is not a whole number"),
        ({"temperature": 0}, "temperature: 0.0 is not a number from"),
        ({"risk": 2}, "risk: 2.0 is not a number from 0 to 1"),
        ({"prefix": 3}, "prefix: 3 is not a text"),
        ({"treshold": 1}, "unknown key 'treshold'; one of"),
    ],
)
def test_wrong_setting_names_the_key(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        engines.engine(f"eta={_file(tmp_path, **table)}")
    assert message in str(caught.value)
