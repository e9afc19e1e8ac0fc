"""A source's words become labels by a table that a user edits: the first rule that fits, and never a guess."""

from __future__ import annotations

from typing import Any

import pytest

from safevlm.data.answers import ANSWERS, answer
from safevlm.data.labels import Label, Ruling, read_labels
from safevlm.data.sources.row import SourceRow
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE

ILLEGAL = {"category": "illegal", "level": "must_refuse"}


def _label(rules: dict[str, Any], *words: str, source: str = "it", **row: Any) -> Label | None:
    return read_labels(rules, DEFAULT, "mix.yaml").label(source, SourceRow("1", "x:1", words=words, **row))


def test_first_rule_that_fits_wins() -> None:
    rules = {"it/a/b": "drop", "it/a": ILLEGAL, "it": "unlabelled"}
    assert _label(rules, "a", "b") is None
    assert _label(rules, "a", "c") == _label(rules, "a") == Label("illegal", "must_refuse")
    assert _label(rules, "z") == _label(rules) == Label()
    assert _label(dict(reversed(rules.items())), "a", "b") == Label(), "the order of the file does nothing"


@pytest.mark.parametrize("pattern", ["it/*/personal data", "IT/*/Personal_Data", "it/*/personal-data", "i?/pri*/*data"])
def test_patterns_do_not_mind_case_and_joints(pattern: str) -> None:
    assert _label({pattern: ILLEGAL}, "privacy", "personal_data") == Label("illegal", "must_refuse")


def test_a_longer_pattern_does_not_fit_fewer_words() -> None:
    with pytest.raises(LookupError, match="it/a"):
        _label({"it/a/*": ILLEGAL}, "a")


def test_row_that_no_rule_fits_keeps_its_own_label_or_is_an_error() -> None:
    assert _label({}, safe_type="privacy", safe_level="careful") == Label("privacy", "careful")
    assert _label({}, safe_type="4", safe_level="1") == Label("privacy", "careful"), "ids as texts"
    assert _label({}, safe_level=SAFE) == Label(CLEAN, SAFE)
    with pytest.raises(LookupError):
        _label({"other": ILLEGAL})


PRIVATE = {"safe_type": "privacy", "safe_level": "careful"}


def _ruling(rules: dict[str, Any], *words: str, keeps: bool = True, relabel: bool = False, **row: Any) -> Ruling:
    table = read_labels(rules, DEFAULT, "mix.yaml", relabel)
    return table.ruling("it", SourceRow("1", "x:1", words=words, **row), keeps)


@pytest.mark.parametrize("rule", [{"category": CLEAN, "level": SAFE}, ILLEGAL, "unlabelled"])
def test_a_rule_overrules_a_label_only_when_it_says_so(rule: Any) -> None:
    told = Label() if rule == "unlabelled" else Label(**rule)
    assert _ruling({"it": rule}, **PRIVATE) == Ruling(Label("privacy", "careful"), "it", "kept")
    assert _ruling({"it": rule}, keeps=False, **PRIVATE).own == "refused"
    assert _ruling({"it": rule}, relabel=True, **PRIVATE) == Ruling(told, "it", "overruled")
    if rule != "unlabelled":
        assert _ruling({"it": {**rule, "relabel": True}}, keeps=False, **PRIVATE) == Ruling(told, "it", "overruled")


@pytest.mark.parametrize("keeps", [True, False])
def test_a_rule_may_agree_complete_translate_and_drop(keeps: bool) -> None:
    agreed = {"category": "privacy", "level": "careful"}
    for rule, row in ((agreed, PRIVATE), (agreed, {"safe_level": "careful"}), (ILLEGAL, {"safe_type": "blorp"})):
        assert _ruling({"it/*": rule}, "a", keeps=keeps, **row) == Ruling(Label(**rule), "it/*")
    assert _ruling({"it": "drop"}, keeps=keeps, **PRIVATE) == Ruling(None, "it")


def test_own_labels_that_contradict_each_other_are_an_error_unless_relabelled() -> None:
    row = {"safe_type": CLEAN, "safe_level": "must_refuse"}
    for rules in ({}, {"it": ILLEGAL}):
        with pytest.raises(ValueError, match="x:1: category 'clean' with level 'must_refuse'"):
            _ruling(rules, **row)
    assert _ruling({"it": ILLEGAL}, relabel=True, **row).label == Label("illegal", "must_refuse")


def test_own_label_that_the_taxonomy_does_not_have_is_an_error_with_its_place() -> None:
    with pytest.raises(ValueError, match="x:1: unknown safe_type 'blorp'"):
        _label({}, safe_type="blorp")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("dorp", "drop"),
        ({"category": "blorp", "level": "careful"}, "blorp"),
        ({"category": "illegal", "level": "blorp"}, "blorp"),
        ({"category": "illegal"}, "level"),
        ({"category": CLEAN, "level": "careful"}, "together"),
        ({"category": "illegal", "level": SAFE}, "together"),
        ({**ILLEGAL, "relabel": "yes"}, "relabel"),
        (None, "None"),
    ],
)
def test_wrong_rule_is_named(value: Any, told: str) -> None:
    with pytest.raises(ValueError, match="mix.yaml: labels: it/a: ") as error:
        _label({"it/a": value}, "a")
    assert told in str(error.value)


@pytest.mark.parametrize("level", [level for level in DEFAULT.level_names if level != SAFE])
@pytest.mark.parametrize("category", [name for name in DEFAULT.category_names if name != CLEAN])
def test_every_default_level_has_answers_that_name_the_topic(category: str, level: str) -> None:
    topic = DEFAULT.categories[DEFAULT.category_id(category)].topic
    said = {answer({}, DEFAULT, category, level, str(draw)) for draw in range(50)}
    assert len(said) == len(ANSWERS[level]) and all(topic in one for one in said), said


def test_own_answers_come_before_ours_and_the_special_before_the_general() -> None:
    own = {"careful": ["Mind {topic}."], "privacy/careful": ["No names."]}
    assert answer(own, DEFAULT, "privacy", "careful", "1") == "No names."
    assert answer(own, DEFAULT, "insults", "careful", "1") == "Mind insults or bullying."
    assert answer({}, DEFAULT, "insults", SAFE, "1") is None, "harmless rows get no invented answer"
