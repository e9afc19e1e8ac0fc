"""`safevlm bench data`: what is compared is the same, and every number has its peer in the same run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from safevlm.__main__ import main
from safevlm.evaluation.speed import data_start, image_cost
from tests import tiny


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tower and heads of the tests' size."""
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    monkeypatch.setattr(image_cost, "VIT_B_16", {**image_cost.VIT_B_16, **vision, "image_size": 64})
    monkeypatch.setattr(image_cost, "LLM", {**image_cost.LLM, "hidden_size": 64, "vocab_size": 300})
    monkeypatch.setattr(image_cost, "HEADS", {"tiny": tiny.safety_config()})


def _measured(out: Path, *flags: str) -> dict[str, Any]:
    assert main(["bench", "data", "--out", str(out), *flags]) == 0
    table: dict[str, Any] = json.loads((out / "data.json").read_text(encoding="utf-8"))
    return table


@pytest.mark.usefixtures("small")
def test_images_are_measured_beside_transformers_and_the_bare_tower(tmp_path: Path, capsys: Any) -> None:
    table = _measured(tmp_path, "--only", "images", "--images", "2", "--rounds", "2")
    images = table["images"]
    assert set(table) == {"images", "made_by"} and images["images"] == images["rounds"] == 2
    for ways in images["prepared"].values():
        assert ways["difference"] <= 1e-6
        assert ways["transformers"]["ratio"]["value"] == 1 and ways["safevlm"]["ratio"]["n"] == 2
    [ways] = images["audited"].values()
    assert {"tower", "judge", "read", "audit"} <= set(ways)
    assert ways["tower"]["ratio"]["value"] == 1
    assert ways["audit"]["seconds"] > 0 and set(ways["speed"]) == {"judge", "audit"}
    assert capsys.readouterr().out.count("ratio") == len(images["prepared"])


@pytest.mark.slow
def test_records_are_measured_in_fresh_processes_that_read_the_same(tmp_path: Path) -> None:
    records = _measured(tmp_path, "--only", "records", "--records", "300", "--starts", "1")["records"]
    assert set(records["ways"]) == {"list", "first", "again"} and set(records["ratios"]) == {"first", "again"}


@pytest.mark.slow
def test_a_mix_is_measured_beside_a_script_that_writes_the_same(tmp_path: Path) -> None:
    table = _measured(tmp_path, "--only", "mix", "--records", "300", "--starts", "1")
    assert set(table) == {"mix", "made_by"} and set(table["mix"]["ways"]) == {"plain", "mix"}
    assert all(way["peak_mb"] >= way["memory_mb"] >= 0 < way["cpu_seconds"] for way in table["mix"]["ways"].values())
    assert table["mix"]["ratio"]["value"] > 0


def test_near_duplicates_are_measured_beside_equal_ones_and_all_that_are_alike_are_found(tmp_path: Path) -> None:
    table = _measured(tmp_path, "--only", "duplicates", "--fingerprints", "4000", "--starts", "2")["duplicates"]
    assert (table["images"], table["alike"], table["rounds"]) == (4000, 80, 2)
    assert table["ways"]["near"]["ratio"]["n"] == 2 and table["ways"]["equal"]["ratio"]["value"] == 1


def test_processes_that_a_measured_one_starts_count() -> None:
    work = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    _, told = data_start.metered(lambda: subprocess.run([sys.executable, "-c", work], check=True))
    assert told["cpu_seconds"] >= 0.3


def test_other_pixels_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = image_cost.pixel_values
    monkeypatch.setattr(image_cost, "pixel_values", lambda *given: real(*given) + 1e-3)
    with pytest.raises(ValueError, match="pixels differ"):
        image_cost.measure(1, 1)
