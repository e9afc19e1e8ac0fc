"""What SafeCLIP's ablation counts is what the detector says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.__main__ import main
from safevlm.analysis import detection
from safevlm.analysis.labelled_images import read_sets
from safevlm.analysis.safe_clip import TAUS
from safevlm.defenses.bank import read_bank, write_bank
from safevlm.defenses.safe_clip import READINGS, SafeClipDetector
from safevlm.taxonomy import DEFAULT
from tests.defenses import banks
from tests.training import workshop


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    workshop.stock_folder(home / "base")
    workshop.save_rows(home / "data" / "some.jsonl", workshop.rows(home / "data"))
    write_bank(banks.bank(detection.load(home / "base").safe_llava, tau=0.2), home / "own.safetensors")
    return home


def test_shares_are_the_detectors(home: Path) -> None:
    data, out = str(home / "data" / "some.jsonl"), home / "table.json"
    words = ["--model", str(home / "base"), "--bank", f"mine={home / 'own.safetensors'}", "--data", data]
    (home / "summary.json").write_text('{"suites": {"miniature": {}}}', encoding="utf-8")
    assert main(["analyze", "safe-clip", *words, "--out", str(out), "--summary", str(home / "summary.json")]) == 0
    table = json.loads(out.read_text(encoding="utf-8"))
    assert table["defenses"] == {"miniature": {}}
    loaded, sets = detection.load(home / "base"), read_sets([data], DEFAULT, by_group=True)
    bank = read_bank(home / "own.safetensors", DEFAULT)
    for reading in READINGS:
        guard = SafeClipDetector(bank, DEFAULT, reading)
        verdicts = detection.detect_all(loaded, sets[0].images, guard.detect)
        found = table["banks"]["mine"]["readings"][reading]
        assert found["at_tau"]["some"]["flagged"]["value"] == _share([not one.is_clean for one in verdicts])
        pairs = list(zip(verdicts, sets[0].images, strict=True))
        right = [not one.is_clean and one.category == row.category for one, row in pairs]
        assert found["at_tau"]["some"]["flagged_as_its_category"]["value"] == _share(right)
        false_alarms = [not one.is_clean for one, row in pairs if row.is_clean]
        assert found["at_tau"]["false_positive_rate"]["value"] == _share(false_alarms)
        shares = [found["by_tau"][str(tau)]["some"] for tau in TAUS]
        assert shares == sorted(shares, reverse=True), "a higher threshold flags more"


def _share(claims: list[bool]) -> float:
    return sum(claims) / len(claims)
