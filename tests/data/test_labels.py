"""A source's words become labels by a table that a user edits: the first rule that fits, and never a guess."""

from __future__ import annotations

from typing import Any

import pytest

from safevlm.data.answers import ANSWERS, answer
from safevlm.data.labels import Label, read_labels
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
    assert _label({"it": ILLEGAL}, safe_type="privacy") == Label("illegal", "must_refuse"), "rules come first"
    with pytest.raises(LookupError):
        _label({"other": ILLEGAL})


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
        ({"category": CLEAN, "level": "careful"}, "goes with level 'safe' only"),
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
