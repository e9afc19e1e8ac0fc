"""Batches and processes change how long asking takes, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.evaluation.speed.throughput import FIRST, throughput, told, ways_of
from safevlm.evaluation.suites.miniature import load
from safevlm.miniature.dataset import MiniatureDataConfig, write

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "checkpoints" / "miniature"


@pytest.mark.slow
def test_batched_and_shared_replies_equal_those_of_asking_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=8))
    table = throughput(
        "miniature",
        tmp_path / "data",
        MODEL,
        "none",
        tmp_path / "out",
        blocks=3,
        block_size=10,
        batch_size=5,
        processes=2,
        device="cpu",
    )
    assert list(table["ways"]) == [FIRST, "batches of 5", "batches of 5, 2 processes"]
    for name, row in table["ways"].items():
        assert (row["same_replies"]["count"], row["same_replies"]["n"]) == (30, 30), f"{name}: {row['same_replies']}"
        ratio = row["times_faster"]
        assert ratio["n"] == 3 and 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert table["ways"][FIRST]["times_faster"]["value"] == 1
    written = json.loads((tmp_path / "out" / "throughput.json").read_text())
    assert written.pop("made_by")["digests"] and written == table
    assert "30 of 30 replies as one by one" in "\n".join(told(table))


@pytest.mark.slow
def test_an_error_of_a_process_is_the_commands_error(tmp_path: Path) -> None:
    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=2, validation_per_group=0))
    with pytest.raises(ValueError, match="no safety head"):
        throughput(
            "miniature",
            tmp_path / "data",
            MODEL,
            "safety-head",
            tmp_path / "out",
            blocks=1,
            block_size=2,
            processes=1,
            device="cpu",
        )


def test_too_few_requests_are_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=2, validation_per_group=0))
    assert len(load(tmp_path / "data")) == 14
    with pytest.raises(ValueError, match="14 requests are too few"):
        throughput("miniature", tmp_path / "data", MODEL, "none", tmp_path / "out", blocks=2, block_size=7)


def test_one_process_is_no_third_way() -> None:
    assert [way.processes for way in ways_of(8, 1)] == [1, 1]
    assert [way.processes for way in ways_of(8, 3)] == [1, 1, 3]
