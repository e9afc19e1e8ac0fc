"""Concepts of one's own: read as written, or an error that names file, concept and key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from safevlm.defenses.concepts import Concept, read_concepts
from safevlm.miniature import world
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE

NEUTRAL = {"name": "plain", "category": CLEAN, "level": SAFE, "templates": ["a plain thing"]}
KNIFE = {"name": "knife", "category": "illegal", "level": "may_refuse", "templates": ["a knife", "a blade"], "prior": 2}
MINIATURE = Path(world.__file__).with_name("concepts.yaml")


def _read(folder: Path, *rows: Any) -> tuple[Concept, ...]:
    file = folder / "own.yaml"
    file.write_text(yaml.safe_dump({"concepts": list(rows)}), encoding="utf-8")
    return read_concepts(file, DEFAULT)


def test_file_is_read_as_written(tmp_path: Path) -> None:
    assert _read(tmp_path, NEUTRAL, KNIFE) == (
        Concept("plain", CLEAN, SAFE, ("a plain thing",)),
        Concept("knife", "illegal", "may_refuse", ("a knife", "a blade"), prior=2.0),
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([NEUTRAL, {**KNIFE, "category": "weapons"}], r"concepts\[1\] 'knife': category: unknown 'weapons'; one of"),
        ([NEUTRAL, {**KNIFE, "level": "grave"}], r"'knife': level: unknown 'grave'; one of"),
        ([NEUTRAL, {**KNIFE, "level": SAFE}], r"'knife': level: category 'clean' goes with level 'safe'"),
        ([{**NEUTRAL, "level": "careful"}, KNIFE], r"'plain': level: category 'clean' goes with level 'safe'"),
        ([NEUTRAL, KNIFE, KNIFE], "two are named 'knife'"),
        ([NEUTRAL, {**KNIFE, "colour": "red"}], r"concepts\[1\].colour: unknown key 'colour'; one of"),
        ([NEUTRAL, {key: KNIFE[key] for key in ("name", "level", "templates")}], r"concepts\[1\]: lacks 'category'"),
        ([NEUTRAL, {**KNIFE, "templates": []}], r"concepts\[1\]: templates: \[\] is not a list of phrases"),
        ([NEUTRAL, {**KNIFE, "templates": "a knife"}], r"concepts\[1\].templates: 'a knife' is not a list"),
        (
            [NEUTRAL, {**KNIFE, "templates": ["a knife", " "]}],
            r"concepts\[1\]: templates: .*' '\] is not a list",
        ),
        ([NEUTRAL, {**KNIFE, "prior": 0}], r"concepts\[1\]: prior: 0.0 is not a number above 0"),
        ([NEUTRAL, {**KNIFE, "prior": "often"}], r"concepts\[1\].prior: 'often' is not a number"),
        ([NEUTRAL, "knife"], r"concepts\[1\]: 'knife' is not a table"),
        ([KNIFE], "there must be a neutral one"),
        ([NEUTRAL], "and one that is not"),
        ([], "there must be a neutral one"),
    ],
)
def test_error_names_file_concept_and_key(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        _read(tmp_path, *rows)
    assert str(caught.value).startswith(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concepts: [", "not YAML"),
        ("concept: []", "unknown key 'concept'"),
        ("concepts: knife", "is not a list"),
    ],
)
def test_file_that_holds_no_list_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_concepts(tmp_path / "own.yaml", DEFAULT)


def test_missing_file_names_one_to_start_from(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file of concepts; .*concepts.yaml is one to start from"):
        read_concepts(tmp_path / "none.yaml", DEFAULT)


def test_miniatures_concepts_name_no_symbol() -> None:
    names = {thing.name for thing in world.THINGS}
    for concept in read_concepts(MINIATURE, DEFAULT):
        words = {word.strip(",") for template in concept.templates for word in template.split()}
        assert not names & words, f"{concept.name} names {names & words}: zero-shot would mean nothing"
