"""A contaminated folder, its truth, and how right an audit of it is said to be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from safevlm.data.records import read_records
from safevlm.miniature import __main__ as miniature
from safevlm.miniature import audit_truth, contamination
from safevlm.taxonomy import CLEAN, DEFAULT


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("contaminated")
    contamination.write(home, contamination.ContaminationConfig(n=60, risky=0.1, copies=0.05, calibration=10))
    return home


def _truth(home: Path) -> list[dict]:
    return [json.loads(line) for line in (home / "truth.jsonl").read_text().splitlines()]


def test_exactly_the_wanted_share_is_risky_and_every_image_is_there(home: Path) -> None:
    truth = _truth(home)
    drawn = {row["group"]: row["safe_type"] for row in truth}
    assert len(truth) == 60 and all((home / row["image"]).is_file() for row in truth)
    assert sum(DEFAULT.category_names[kind] != CLEAN for kind in drawn.values()) == 6


@pytest.mark.parametrize("split", ["test", "validation"])
def test_the_command_writes_what_its_flags_say(split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"n": 20, "risky": 0.2, "calibration": 10, "split": split}
    contamination.write(tmp_path / "wanted", contamination.ContaminationConfig(**asked))
    flags = [word for name, value in asked.items() if value != "test" for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["miniature", "contaminate", "--out", str(tmp_path / "made"), *flags])
    assert miniature.main() == 0
    for file in ("public.jsonl", "truth.jsonl", "images/00/00007.png"):
        assert (tmp_path / "made" / file).read_bytes() == (tmp_path / "wanted" / file).read_bytes()


def test_public_records_are_unlabelled_and_help_with_risky_images_too(home: Path) -> None:
    records = read_records([home / "public.jsonl"], DEFAULT)
    risky = {home / row["image"] for row in _truth(home) if DEFAULT.category_names[row["safe_type"]] != CLEAN}
    assert len(records) == 57 and all(record.safe_type is None for record in records)
    answers = [record.messages[-1]["content"][0]["text"] for record in records if record.images[0] in risky]
    assert answers and all(answer.startswith(("Take the ", "There is ")) for answer in answers)


def test_recall_and_precision_are_counted_against_the_truth(home: Path, tmp_path: Path) -> None:
    truth = _truth(home)
    risky = [row for row in truth if DEFAULT.category_names[row["safe_type"]] != CLEAN]
    found, alarm = risky[1:], next(row for row in truth if row not in risky)
    flagged = {row["image"] for row in [*found, alarm]}
    rows = [
        {
            "path": row["image"].removeprefix("images/"),
            "category": DEFAULT.category_names[row["safe_type"]],
            "action": "hint" if row["image"] in flagged else "allow",
        }
        for row in truth
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "audit.parquet")
    (tmp_path / "summary.json").write_text('{"estimate": null}')
    result = audit_truth.compare(home / "truth.jsonl", tmp_path)
    assert (result["risky"], result["flagged"]) == (len(risky), len(flagged))
    assert result["recall"]["value"] == pytest.approx(len(found) / len(risky))
    assert result["precision"]["value"] == pytest.approx(len(found) / len(flagged))
    assert result["category_right_of_found"]["value"] == 1.0
