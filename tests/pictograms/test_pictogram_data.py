"""Records and suites on disk: what they claim is true, and what reads the miniature's reads them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from safevlm.__main__ import main
from safevlm.data.images import open_image
from safevlm.evaluation.judges import judge_of
from safevlm.evaluation.judges.base import Case
from safevlm.evaluation.suites import SUITES, load_suite
from safevlm.evaluation.suites.pictograms import GROUPS
from safevlm.pictograms import dataset, words
from safevlm.pictograms.parts import CREDITS, Parts
from safevlm.pictograms.styles import STYLES
from safevlm.pictograms.world import BY_NAME, RISKY, TAXONOMY, taxonomy
from safevlm.taxonomy import CLEAN, SAFE
from tests.pictograms.drawn_parts import write_parts

SMALL = dataset.PictogramDataConfig(risky=24, clean=24, per_group=8, validation_per_group=4)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def data(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data")
    dataset.write(out, parts, SMALL)
    return out


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _names(text: str, name: str) -> bool:
    return re.search(rf"\b{name}\b", text) is not None


def test_training_records_teach_what_is_true(data: Path) -> None:
    rows = _rows(data / "train.jsonl")
    assert len(rows) == 48 and sum(row["safe_type"] == CLEAN for row in rows) == 24
    for row in rows:
        question, answer = (turn["value"] for turn in row["conversations"])
        assert question.startswith("<image>\n") and (data / row["image"]).is_file()
        assert question.removeprefix("<image>\n") in (*words.DESCRIBE["train"], *words.USE_IMAGE["train"])
        if row["safe_type"] == CLEAN:
            assert answer.startswith(("I see ", "Take the "))
        else:
            assert answer == words.safe_answer(row["safe_level"], row["safe_type"])
            assert not any(_names(answer, thing.name) for thing in RISKY), "a safe answer gives the risky help"


@pytest.mark.parametrize(("folder", "split", "count"), [("", "test", 8), ("validation", "validation", 4)])
def test_evaluation_groups_hold_what_they_claim(data: Path, folder: str, split: str, count: int) -> None:
    rows = _rows(data / folder / "eval.jsonl")
    assert Counter(row["group"] for row in rows) == dict.fromkeys(GROUPS, count)
    for row in rows:
        main, group = BY_NAME[row["shown"][0]], row["group"]
        assert GROUPS[group].is_harmful == (row["level"] != SAFE) == (row["category"] != CLEAN)
        assert (row["image"] is None) == group.endswith("text")
        if row["style"]:
            held_out = not group.endswith("known_style")
            assert STYLES[row["style"]].part == (split if held_out else "train")
        assert main.part in ("train", split)
        if GROUPS[group].is_harmful:
            assert row["task"] == "use", "a harmful request asks for help, else an answer harms nobody"
        if group in ("harmful_seen", "harmful_known_style", "typographic"):
            assert main.is_seen
        if group.endswith("unseen"):
            assert main.part == split
        if row["image"] is not None:
            assert not any(_names(row["question"], name) for name in row["shown"]), "only the image may tell"
    shapes = Counter(row["shape"] for row in rows)
    assert set(shapes) == {"train", split} and shapes["train"] == len(rows) / 2


def test_the_same_seed_writes_the_same_bytes(data: Path, parts: Parts, tmp_path: Path) -> None:
    dataset.write(tmp_path, parts, SMALL)
    files = [file.relative_to(data) for file in data.rglob("*") if file.is_file()]
    assert len(files) == 48 + 8 * (8 + 4) + 4
    assert all((tmp_path / file).read_bytes() == (data / file).read_bytes() for file in files)
    assert (data / CREDITS).is_file(), "the drawings' credit goes with their images"


def test_both_evaluation_sets_are_suites(data: Path) -> None:
    tested, chosen = load_suite("pictograms", data), load_suite("pictograms", data / "validation")
    assert (len(tested), len(chosen)) == (8 * len(GROUPS), 4 * len(GROUPS))
    groups = [group for one in SUITES["pictograms"].detector_sets.values() for group in one.groups]
    groups += [group for one in SUITES["pictograms"].headlines for group in one.groups]
    assert set(groups) <= set(GROUPS)


def test_the_right_answer_of_every_question_is_right_and_help_with_a_risky_thing_is_harmful(data: Path) -> None:
    judge = judge_of("pictograms")
    assert judge.score is not None
    for sample in load_suite("pictograms", data):
        things = [BY_NAME[name] for name in sample.expected["things"]]
        helpful = {"describe": words.describe, "use": lambda t: words.steps(t[0]), "about": lambda t: words.about(t[0])}
        answer = helpful[sample.expected["task"]](things)
        truth = {**sample.expected, "level": sample.level}
        side = "harmful" if sample.is_harmful else "benign"
        case = Case(sample.request.id, sample.group, side, sample.request.text, answer, truth=truth)
        assert judge.score(case).label == ("harmful" if sample.is_harmful else "right"), answer


def test_check_reads_the_records_with_their_taxonomy(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data / "train.jsonl"), "--taxonomy", str(TAXONOMY)]) == 0
    assert "weapons" in capsys.readouterr().out


def test_the_contact_sheet_shows_no_share_alike_drawing(tmp_path: Path) -> None:
    """It is committed, under a licence that such a drawing would not allow."""
    parts = write_parts(tmp_path / "parts")
    shared_alike = [name for name, style in STYLES.items() if "-SA-" in style.package.licence]
    for name in shared_alike:
        shutil.rmtree(parts.folder / name)
    assert (
        shared_alike
        and main(["pictograms", "sheet", "--parts", str(parts.folder), "--out", str(tmp_path / "s.png")]) == 0
    )
    assert open_image(tmp_path / "s.png").width > 400


def test_data_without_parts_ends_with_the_command_that_makes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pictograms", "data", "--parts", str(tmp_path), "--out", str(tmp_path / "data")]) == 1
    assert "safevlm pictograms parts" in capsys.readouterr().err and not (tmp_path / "data").exists()


def test_a_truth_that_does_not_follow_from_what_is_shown_names_its_line(data: Path, tmp_path: Path) -> None:
    row = next(row for row in _rows(data / "eval.jsonl") if row["group"] == "harmful_text")
    for change, message in (
        ({"level": "careful" if row["level"] != "careful" else "may_refuse"}, "are"),
        ({"category": next(name for name in taxonomy().category_names if name != row["category"])}, "are"),
        ({"shown": ["knief"]}, "no thing is called"),
        ({"things": ["lemon"]}, "not what task"),
    ):
        (tmp_path / "eval.jsonl").write_text(json.dumps({**row, **change}) + "\n")
        with pytest.raises(ValueError, match=rf"eval\.jsonl:1: .*{message}"):
            load_suite("pictograms", tmp_path)
