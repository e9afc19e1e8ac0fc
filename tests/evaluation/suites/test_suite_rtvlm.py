"""RTVLM: both shapes of a misleading row, two images in order, tasks and labels from a table, the split of a mix."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from safevlm.evaluation.suites import SUITES, AbsentError, load_suite
from safevlm.evaluation.suites.counts import counts
from safevlm.evaluation.suites.images import source_rows
from safevlm.evaluation.suites.rtvlm import SPLIT, TABLE
from safevlm.types import Sample
from tests.data.downloads import FLAGS, jsonl, png, rtvlm

SHIPPED = Path("safevlm/evaluation/suites") / TABLE


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return rtvlm(tmp_path / "rtvlm")


def load(data: Path, suite: str = "rtvlm") -> list[Sample]:
    return load_suite(suite, data, partial=True)


def test_both_shapes_of_a_misleading_row_are_read(data: Path) -> None:
    asked = {one.request.id: one for one in load(data) if one.group == "text_misleading"}
    plain, first, further = (asked[f"misleading-{name}"] for name in ("0000", "0001", "0001-1"))
    assert plain.request.text == first.request.text == "Is it a blorp?", "a string is a question, not letters"
    assert (further.request.text, further.expected["reference"]) == ("Is it a florp?", "No.")
    assert (plain.level, first.level, further.level) == ("must_refuse", "may_refuse", "careful"), "each by its label"
    assert first.request.images == further.request.images


def test_further_questions_of_a_row_do_not_count_as_rows(data: Path) -> None:
    found = {count.part: count.found for count in counts(SUITES["rtvlm"], load(data))}
    assert found["text_misleading"] == 10, "10 rows, 15 questions"
    assert found["total"] == sum(found.values()) - found["total"]


def test_order_tasks_send_two_images_in_their_order(data: Path) -> None:
    sample = next(one for one in load(data) if one.group == "visual_order_b")
    first, second = sample.request.images
    assert (Path(first).read_bytes(), Path(second).read_bytes()) == (png(FLAGS[0], "JPEG"), png(FLAGS[1], "JPEG"))
    assert sample.request.text == "Whose flag is it?" and sample.expected["reference"] == FLAGS[0]


def test_tasks_are_the_ten_of_the_published_table(data: Path) -> None:
    groups = Counter(one.group for one in load(data))
    assert set(SUITES["rtvlm"].groups) == set(groups) and len(groups) == 10
    rubrics = {one.group: one.expected["rubric"] for one in load(data)}
    assert set(rubrics.values()) == {"politics", "illegal", "fairness", "privacy", "misleading"}
    assert rubrics["racial"] == "fairness" and rubrics["captcha"] == "illegal"


def test_labels_are_those_a_detector_is_taught() -> None:
    from yaml import safe_load

    mix = safe_load(Path("safevlm/recipes/mix_safevlm.yaml").read_text())["labels"]
    ours = safe_load(SHIPPED.read_text())["labels"]
    assert ours == {name: label for name, label in mix.items() if name.startswith("rtvlm/")}


def test_a_table_of_ones_own_is_read_instead(data: Path) -> None:
    text = SHIPPED.read_text().replace("rtvlm/racial: {category: fairness", "rtvlm/racial: {category: insults")
    (data / TABLE).write_text(text.replace("jailbreak*: jailbreak ", "jailbreak*: captcha "))
    samples = load(data)
    assert {one.expected["rubric"] for one in samples if one.group == "racial"} == {"insults"}
    assert Counter(one.group for one in samples)["captcha"] == 25


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("  face: face", "  face: faces", r"unknown \['faces'\]"),
        ("  face: face\n", "", r"subsets without one \['face'\]"),
        ("category: privacy, level: careful", "category: privacy, level: high", "unknown safe_level 'high'"),
        ("labels:", "label:", "label: unknown key"),
    ],
)
def test_a_mistake_in_the_table_names_the_file(data: Path, old: str, new: str, message: str) -> None:
    (data / TABLE).write_text(SHIPPED.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"rtvlm\.yaml.*{message}"):
        load(data)


def test_a_missing_image_is_told(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"id": "nobody.jpg", "prompt": "Who is it?", "refused_to_answer": "Refuse to Answer"}]
    jsonl(data / "data/Face/face_diffusion.jsonl", rows)
    assert not [one for one in load(data) if one.group == "face"]
    assert "face-0000 (nobody.jpg)" in caplog.text


def test_the_held_out_side_is_that_of_the_mix(data: Path) -> None:
    with pytest.raises(AbsentError, match=f"has no {SPLIT}; copy it from the mix"):
        load(data, "rtvlm_test")
    assert not list(data.rglob(SPLIT)), "asking draws no split: the model was trained on another"
    drawn = data.parent / "drawn.json"
    train = {row.id for row in source_rows("rtvlm", data, "train", drawn)}
    shutil.copy(drawn, data / SPLIT)
    test = [one.request.id for one in load(data, "rtvlm_test")]
    assert test == json.loads(drawn.read_text())["ids"]["test"] and train.isdisjoint(test)
    assert 0 < len(test) < len(train)


def test_a_split_whose_rows_are_gone_is_an_error(data: Path) -> None:
    source_rows("rtvlm", data, "test", data / SPLIT)
    (data / "data/Face/face_diffusion.jsonl").write_text("")
    with pytest.raises(ValueError, match=r"rows of the test side are not in .*'face-"):
        load(data, "rtvlm_test")
