"""One table of categories and levels: ids as published, custom ones from YAML, mistakes named."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import yaml

from safevlm.taxonomy import CLEAN, DEFAULT, SAFE, Category, Level, Taxonomy

CUSTOM = Taxonomy(
    categories=(Category(CLEAN), Category("spam", "spam", "Unwanted mail.")),
    levels=(Level(SAFE), Level("bad", "Mind the {topic}.", "It is bad.")),
)


# --- the published ids ------------------------------------------------------------------------------------------------


def test_category_ids_are_the_papers() -> None:
    names = ["politics", "illegal", "insults", "fairness", "privacy", "misleading", "clean"]
    assert DEFAULT.category_names == names, "data sets of the release carry these ids"


def test_level_ids_are_the_papers() -> None:
    assert DEFAULT.level_names == ["safe", "careful", "may_refuse", "must_refuse"]


def test_everything_but_clean_and_safe_has_its_part_of_a_hint() -> None:
    for category in DEFAULT.categories:
        assert bool(category.topic) == (category.name != CLEAN), category.name
    for level in DEFAULT.levels:
        fields = [name for _, name, _, _ in string.Formatter().parse(level.stance) if name is not None]
        assert fields == ([] if level.name == SAFE else ["topic"]), level.name


def test_every_entry_has_a_definition() -> None:
    assert all(entry.definition for entry in (*DEFAULT.categories, *DEFAULT.levels))


# --- labels -----------------------------------------------------------------------------------------------------------


def test_labels_are_ids_or_names() -> None:
    for number, name in enumerate(DEFAULT.category_names):
        assert DEFAULT.category_id(number) == DEFAULT.category_id(name) == number
    for number, name in enumerate(DEFAULT.level_names):
        assert DEFAULT.level_id(number) == DEFAULT.level_id(name) == number


@pytest.mark.parametrize("label", ["porn", "Clean", "", "0", 7, -1, 1.0, True, False, None, ["clean"]])
def test_unknown_category_names_the_choices(label: object) -> None:
    with pytest.raises(ValueError, match="unknown safe_type") as caught:
        DEFAULT.category_id(label)
    assert repr(label) in str(caught.value)
    assert all(name in str(caught.value) for name in DEFAULT.category_names)


@pytest.mark.parametrize("label", ["high", "", "3", 4, -1, 2.0, True, False, None])
def test_unknown_level_names_the_choices(label: object) -> None:
    with pytest.raises(ValueError, match="unknown safe_level") as caught:
        DEFAULT.level_id(label)
    assert repr(label) in str(caught.value)
    assert all(name in str(caught.value) for name in DEFAULT.level_names)


# --- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taxonomy", [DEFAULT, CUSTOM], ids=["default", "custom"])
def test_table_comes_back_as_it_went(taxonomy: Taxonomy, tmp_path: Path) -> None:
    table = taxonomy.to_dict()
    assert Taxonomy.from_dict(table) == taxonomy
    assert Taxonomy.from_dict(json.loads(json.dumps(table))) == taxonomy, "config.json holds it as JSON"
    file = tmp_path / "taxonomy.yaml"
    file.write_text(yaml.safe_dump(table), encoding="utf-8")
    assert Taxonomy.from_yaml(file) == taxonomy


@pytest.mark.parametrize(
    ("categories", "levels", "told"),
    [
        (["clean", "spam", "spam"], ["safe", "bad"], "a category is named twice"),
        (["clean"], ["safe", "bad", "bad"], "a level is named twice"),
        (["spam"], ["safe"], "no category is named 'clean'"),
        (["clean"], ["bad"], "no level is named 'safe'"),
        ([], ["safe"], "no category is named 'clean'"),
        (["clean"], [], "no level is named 'safe'"),
        (["clean"], ["bad", "safe"], "the first level must be 'safe'"),
    ],
)
def test_table_that_the_mixer_cannot_use_is_an_error(categories: list[str], levels: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Taxonomy(tuple(Category(name) for name in categories), tuple(Level(name) for name in levels))


MISTAKES = {
    "malformed YAML": ("categories: [", ""),
    "nothing": ("", ""),
    "a list": ("- clean", ""),
    "a word": ("clean", ""),
    "no levels": ("categories: [{name: clean}]", "levels"),
    "no categories": ("levels: [{name: safe}]", "categories"),
    "unknown key": ("categories: [{name: clean}]\nlevels: [{name: safe}]\nlevel: []", "unknown key 'level'"),
    "empty section": ("categories:\nlevels: [{name: safe}]", ""),
    "entry with an unknown field": ("categories: [{name: clean, colour: red}]\nlevels: [{name: safe}]", "colour"),
    "entry without a name": ("categories: [{topic: spam}]\nlevels: [{name: safe}]", "name"),
    "entries as words": ("categories: [clean, spam]\nlevels: [safe]", ""),
    "named twice": ("categories: [{name: clean}, {name: clean}]\nlevels: [{name: safe}]", "named twice"),
    "no clean": ("categories: [{name: spam}]\nlevels: [{name: safe}]", "'clean'"),
    "stance with an unknown field": (
        "categories: [{name: clean}]\nlevels: [{name: safe}, {name: bad, stance: 'Mind the {subject}.'}]",
        "subject",
    ),
}


@pytest.mark.parametrize(("text", "told"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_in_a_taxonomy_names_the_file(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "taxonomy.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"taxonomy\.yaml") as caught:
        Taxonomy.from_yaml(file)
    assert str(caught.value).startswith(str(file)), f"the message does not name the file: {caught.value}"
    assert told in str(caught.value)


def test_missing_taxonomy_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere\.yaml"):
        Taxonomy.from_yaml(tmp_path / "nowhere.yaml")
