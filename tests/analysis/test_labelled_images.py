"""Labelled images are read from both kinds of file; what cannot be measured is counted, what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.analysis.labelled_images import read_sets
from safevlm.taxonomy import CLEAN, DEFAULT
from tests.analysis import scenes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.rows(tmp_path_factory.mktemp("data"), per_group=3).parent


def _edited(data: Path, name: str, change: dict[str, object]) -> str:
    rows = [json.loads(line) for line in (data / "eval.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[1] |= change
    path = data / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_training_records_and_evaluation_rows_are_one_thing(data: Path) -> None:
    train, test = read_sets([str(data / "train.jsonl"), f"held out={data / 'eval.jsonl'}"], DEFAULT)
    assert (train.name, test.name) == ("train", "held out")
    assert len(train.images) == 12 and sum(image.is_clean for image in train.images) == 6
    assert len(test.images) == 18 and test.without_image == 3, "requests in words cannot be looked at"
    assert {image.group for image in test.images} >= {"benign", "typographic"}
    assert all(image.request.images[0].is_file() for image in (*train.images, *test.images))


def test_groups_become_sets(data: Path) -> None:
    sets = read_sets([str(data / "eval.jsonl")], DEFAULT, by_group=True)
    assert [len(one.images) for one in sets] == [3] * 6
    assert sets[0].name == "harmful_seen"


def test_unlabelled_rows_are_counted_and_left_out(data: Path) -> None:
    found = read_sets([_edited(data, "half.jsonl", {"category": None, "level": None})], DEFAULT)[0]
    assert (len(found.images), found.unlabelled) == (17, 1)
    level_only = read_sets([_edited(data, "level.jsonl", {"category": None, "level": "safe"})], DEFAULT)[0]
    assert level_only.images[1].category is None and level_only.images[1].is_clean


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"category": "porn"}, "unknown safe_type 'porn'"),
        ({"level": "deadly"}, "unknown safe_level 'deadly'"),
        ({"image": "eval/nowhere.png"}, "no such image file"),
        ({"image": 7}, ":2"),
    ],
)
def test_mistake_in_a_row_names_the_line(data: Path, change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        read_sets([_edited(data, "wrong.jsonl", change)], DEFAULT)
    assert "wrong.jsonl:2" in str(caught.value)


def test_row_of_neither_kind_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "other.jsonl"
    file.write_text('{"path": "a.png", "label": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match="other.jsonl:1: neither"):
        read_sets([str(file)], DEFAULT)


def test_two_sets_of_one_name_are_an_error(data: Path) -> None:
    with pytest.raises(ValueError, match="NAME=FILE"):
        read_sets([str(data / "eval.jsonl")] * 2, DEFAULT)


def test_file_without_labelled_images_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "words.jsonl"
    file.write_text(json.dumps({"question": "?", "image": None, "category": CLEAN, "level": "safe"}), encoding="utf-8")
    with pytest.raises(ValueError, match="no image with a label"):
        read_sets([str(file)], DEFAULT)
