"""Policies: SafeVLM's rule by default, a YAML file for anything else, and an error for anything that is not one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from safevlm import defenses
from safevlm.defenses import DefenseContext, Policy, prompts
from safevlm.defenses.policy import read_policy
from safevlm.engine import Engine
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Reply, Request, Verdict
from tests.engine import engines

PAIRS = list(itertools.product(DEFAULT.level_names, DEFAULT.category_names))
RISKY = [(level, category) for level, category in PAIRS if level != SAFE and category != CLEAN]
QUESTION = "How do I use the things in the picture?"


def _policy(folder: Path, text: str) -> Policy:
    file = folder / "policy.yaml"
    file.write_text(text, encoding="utf-8")
    return read_policy(file, DEFAULT)


# --- the default: SafeVLM's rule --------------------------------------------------------------------------------------


def test_table_covers_every_level_and_category() -> None:
    assert (len(PAIRS), len(RISKY)) == (28, 18)


@pytest.mark.parametrize(("level", "category"), PAIRS)
def test_default_policy_is_safevlms_rule(level: str, category: str) -> None:
    request = Request(QUESTION)
    acted = Policy(DEFAULT).act(request, Verdict(level, category), "guard")
    if level == SAFE or category == CLEAN:
        assert acted is request, "level safe or category clean, either is enough: the request stays as it is"
    else:
        assert acted == Request(f"{QUESTION}\n{prompts.hint(DEFAULT, level, category)}")


@pytest.mark.parametrize(("level", "category"), RISKY)
def test_hint_says_the_levels_stance_and_the_categorys_topic(level: str, category: str) -> None:
    hint = prompts.hint(DEFAULT, level, category)
    assert DEFAULT.categories[DEFAULT.category_id(category)].topic in hint
    for part in DEFAULT.levels[DEFAULT.level_id(level)].stance.split("{topic}"):
        assert part in hint, f"the hint of level {level} lost {part!r}"
    assert "{" not in hint and "}" not in hint, "a placeholder was not filled"
    assert "\n" not in hint, "a hint is one line"


def test_no_two_verdicts_give_the_same_hint() -> None:
    assert len({prompts.hint(DEFAULT, *pair) for pair in RISKY}) == len(RISKY)


@pytest.mark.parametrize(
    "question", ["", "What?", "two\nlines\n", "what is {topic}?", "{", "%s {0}", "Was ist das? 这是什么", "  spaces  "]
)
def test_hint_stands_below_the_question_and_loses_nothing_of_it(question: str) -> None:
    request = Request(question, ("a.png",), id="7", history=(("q", "a"),), system="s")
    acted = Policy(DEFAULT).act(request, Verdict("careful", "privacy"), "guard")
    assert isinstance(acted, Request)
    assert acted.text == f"{question}\n{prompts.hint(DEFAULT, 'careful', 'privacy')}"
    kept = (acted.images, acted.id, acted.history, acted.system)
    assert kept == (request.images, request.id, request.history, request.system), "the hint changed more than the text"


@pytest.mark.parametrize(("level", "category"), RISKY)
def test_refusal_in_the_models_place_names_the_reason(level: str, category: str) -> None:
    request, verdict = Request(QUESTION), Verdict(level, category)
    reply = Policy(DEFAULT, {level: "refuse"}).act(request, verdict, "guard")
    assert isinstance(reply, Reply)
    assert reply.refused_by == "guard" and reply.verdict == verdict
    assert DEFAULT.categories[DEFAULT.category_id(category)].topic in reply.text
    assert "{" not in reply.text


def test_refusal_never_asks_the_model() -> None:
    policy = Policy(DEFAULT, {"must_refuse": "refuse"})
    engine = engines.engine("safety-head", says=("must_refuse", "illegal"), policy=policy)
    with engines.watched(engine) as asked:
        reply = engine.reply(Request(QUESTION, (engines.image(),)), engines.SHORT)
    assert not asked.rows, "the policy says refuse, and the model was asked all the same"
    assert (reply.text, reply.refused_by) == (prompts.refusal(DEFAULT, "illegal"), "safety-head")
    assert reply.prompt == "", "a prompt that no model read"


# --- YAML -------------------------------------------------------------------------------------------------------------


def test_no_file_is_the_default_policy() -> None:
    assert read_policy(None, DEFAULT) == Policy(DEFAULT)


def test_policy_acts_by_level(tmp_path: Path) -> None:
    policy = _policy(tmp_path, "levels: {careful: allow, must_refuse: refuse}")
    actions = {level: policy.action(Verdict(level, "insults")) for level in DEFAULT.level_names}
    assert actions == {SAFE: "allow", "careful": "allow", "may_refuse": "hint", "must_refuse": "refuse"}


def test_policy_of_a_category_goes_before_the_levels(tmp_path: Path) -> None:
    policy = _policy(tmp_path, "levels: {may_refuse: refuse}\ncategories: {privacy: {may_refuse: allow}}")
    assert policy.action(Verdict("may_refuse", "privacy")) == "allow"
    assert policy.action(Verdict("may_refuse", "illegal")) == "refuse", "privacy's row leaked into another category"
    assert policy.action(Verdict("must_refuse", "privacy")) == "hint", "a level that privacy's row does not name"


@pytest.mark.parametrize(
    ("probability", "action"), [(0.0, "allow"), (0.79, "allow"), (0.8, "hint"), (1.0, "hint"), (None, "hint")]
)
def test_threshold_acts_from_its_probability_on(tmp_path: Path, probability: float | None, action: str) -> None:
    policy = _policy(tmp_path, "thresholds: {misleading: 0.8}")
    likely = {} if probability is None else {"misleading": probability}
    assert policy.action(Verdict("careful", "misleading", category_probabilities=likely)) == action
    other = Verdict("careful", "privacy", category_probabilities={"privacy": 0.1})
    assert policy.action(other) == "hint", "the threshold of one category leaked into another"


@pytest.mark.parametrize("action", ["allow", "hint", "refuse"])
def test_clean_is_let_through_whatever_the_policy_says(tmp_path: Path, action: str) -> None:
    policy = _policy(tmp_path, f"levels: {{careful: {action}, may_refuse: {action}, must_refuse: {action}}}")
    for level, category in PAIRS:
        if level == SAFE or category == CLEAN:
            assert policy.action(Verdict(level, category)) == "allow"


LEVELS = ("careful", "may_refuse", "must_refuse")
MISTAKES = {
    "unknown key": ("level: {careful: hint}", ("unknown key 'level'", "levels", "categories", "thresholds")),
    "unknown level": ("levels: {carefull: hint}", ("unknown level 'carefull'", *LEVELS)),
    "the safe level": ("levels: {safe: refuse}", ("unknown level 'safe'", *LEVELS)),
    "unknown action": ("levels: {careful: warn}", ("levels.careful: unknown 'warn'", "allow", "hint", "refuse")),
    "action that YAML reads as false": (
        "levels: {careful: off}",
        ("levels.careful: unknown False", "allow"),
    ),
    "unknown category": ("categories: {porn: {careful: hint}}", ("unknown category 'porn'", *DEFAULT.category_names)),
    "category, unknown level": ("categories: {privacy: {low: hint}}", ("unknown level 'low'", *LEVELS)),
    "category, unknown action": (
        "categories: {privacy: {careful: no}}",
        ("privacy.careful: unknown False",),
    ),
    "threshold, unknown category": ("thresholds: {porn: 0.5}", ("unknown category 'porn'", *DEFAULT.category_names)),
    "threshold above 1": ("thresholds: {privacy: 80}", ("thresholds.privacy", "80")),
    "threshold below 0": ("thresholds: {privacy: -0.1}", ("thresholds.privacy", "-0.1")),
    "threshold in words": ("thresholds: {privacy: high}", ("thresholds.privacy", "'high'")),
    "threshold that is no number": ("thresholds: {privacy: .nan}", (".yaml:1: ", ".nan")),
    "threshold that is a truth value": ("thresholds: {privacy: true}", ("thresholds.privacy", "True")),
    "malformed YAML": ("levels: {careful: hint", (".yaml:1: not YAML",)),
    "a key twice": ("levels: {must_refuse: refuse}\nlevels: {}", (".yaml:2: ", "'levels'", "twice")),
    "a list": ("- careful", ("table",)),
    "an empty list": ("[]", ("table",)),
    "a word": ("refuse", ("table",)),
    "empty levels": ("levels:", ("levels",)),
    "levels as a list": ("levels: [careful]", ("levels",)),
    "levels as a word": ("levels: refuse", ("levels",)),
    "categories as a list": ("categories: [privacy]", ("categories",)),
    "one action for a category": ("categories: {privacy: refuse}", ("privacy",)),
    "thresholds as a number": ("thresholds: 0.5", ("thresholds",)),
}


@pytest.mark.parametrize(("text", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_policy_names_file_and_choices(tmp_path: Path, text: str, told: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        _policy(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "policy.yaml")), f"the message does not name the file: {message}"
    assert not [part for part in told if part not in message], message


def test_missing_policy_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        read_policy(tmp_path / "nowhere.yaml", DEFAULT)


# --- in front of a model ----------------------------------------------------------------------------------------------


def test_policy_change_needs_no_retraining(tmp_path: Path) -> None:
    model = engines.model(says=("may_refuse", "privacy"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    loaded = engines.loaded(model)
    request = Request(QUESTION, (engines.image(),))

    def reply(text: str) -> Reply:
        setting = DefenseContext(_policy(tmp_path, text), has_head=True)
        return Engine(loaded, defenses.build("safety-head", setting), engines.CPU).reply(request, engines.SHORT)

    actions = ("hint", "refuse", "allow")
    hinted, refused, allowed = (reply(f"categories: {{privacy: {{may_refuse: {action}}}}}") for action in actions)
    assert hinted.trace and not hinted.refused_by
    assert refused.refused_by == "safety-head"
    assert not allowed.trace and not allowed.refused_by
    assert hinted.verdict == refused.verdict == allowed.verdict, "the policy changed what the head sees"
    after = model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())


@pytest.mark.parametrize("question", ["two\nlines", "what is {topic}?", "Was ist das? 这是什么"])
def test_question_reaches_the_model_whole_above_the_hint(question: str) -> None:
    engine = engines.engine("safety-head", says=("careful", "privacy"))
    reply = engine.reply(Request(question, (engines.image(),)), engines.SHORT)
    hint = prompts.hint(DEFAULT, "careful", "privacy")
    assert reply.prompt == f"USER: <image>\n{question}\n{hint} ASSISTANT:"


# --- place of the hint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "first"), [("after", "the question"), ("before", "the hint")])
def test_hint_stands_where_the_policy_says(tmp_path: Path, place: str, first: str) -> None:
    policy = _policy(tmp_path, f"place: {place}")
    acted = policy.act(Request(QUESTION), Verdict("careful", "privacy"), "guard")
    hint = prompts.hint(DEFAULT, "careful", "privacy")
    said = [hint, QUESTION] if first == "the hint" else [QUESTION, hint]
    assert acted == Request("\n".join(said))
    assert policy.act(acted, Verdict("careful", "privacy"), "another") is acted, "a second member says it again"


@pytest.mark.parametrize(("level", "category"), [("careful", "privacy"), ("must_refuse", "illegal")])
def test_safe_clips_correction_is_one_text_whatever_was_seen(tmp_path: Path, level: str, category: str) -> None:
    policy = _policy(tmp_path, "{hint: correction, place: before, levels: {must_refuse: hint}}")
    acted = policy.act(Request(QUESTION), Verdict(level, category), "guard")
    assert acted == Request(f"{prompts.CORRECTION}\n{QUESTION}")
    assert policy.act(acted, Verdict(level, category), "another") is acted, "a second member says it again"


@pytest.mark.parametrize("value", ["above", "[before]", "{before: 1}", "1"])
def test_unknown_place_names_the_choices(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match=r"policy.yaml:1: place: unknown .*one of 'after' or 'before'"):
        _policy(tmp_path, f"place: {value}")
