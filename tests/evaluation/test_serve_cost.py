"""A guarded server, one without a guard, and a front before it get the same requests; the file says what made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.evaluation.speed.serve_cost import RATIOS, serve_cost, told
from safevlm.miniature.dataset import MiniatureDataConfig, write

MODEL = Path(__file__).parents[2] / "checkpoints" / "miniature"


@pytest.mark.slow
def test_every_way_is_timed_by_both_clocks_in_one_run(tmp_path: Path) -> None:
    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=4))
    table = serve_cost(
        "miniature", tmp_path / "data", MODEL, "safe-clip", tmp_path / "out", n=3, max_new_tokens=4, device="cpu"
    )
    assert set(table["clocks"]) == {"wall", "cpu"}
    for clock in table["clocks"].values():
        assert set(clock["ratios"]) == set(RATIOS) and all(seconds > 0 for seconds in clock["seconds"].values())
        for ratio in clock["ratios"].values():
            assert ratio["n"] == 3 and ratio["low"] <= ratio["value"] <= ratio["high"]
    written = json.loads((tmp_path / "out" / "serve_cost.json").read_text())
    assert written.pop("made_by")["digests"]["model"] and written == table
    assert len(list(told(table))) == 2 * (1 + len(RATIOS))
