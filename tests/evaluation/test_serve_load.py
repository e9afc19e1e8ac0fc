"""A server is asked by one client and by many, and the answers are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safevlm.evaluation.speed.serve_load import ALONE, serve_load, told
from safevlm.miniature.dataset import MiniatureDataConfig, write

MODEL = Path(__file__).parents[2] / "checkpoints" / "miniature"


@pytest.mark.slow
def test_many_clients_get_the_answers_of_one_and_the_file_says_what_made_it(tmp_path: Path) -> None:
    write(tmp_path / "data", MiniatureDataConfig(risky=12, clean=12, per_group=4))
    table = serve_load(
        "miniature",
        tmp_path / "data",
        MODEL,
        "safe-clip",
        tmp_path / "out",
        clients=4,
        blocks=2,
        block_size=6,
        batch=4,
        max_new_tokens=8,
        device="cpu",
    )
    assert table["same_answers"] == {"count": 12, "n": 12}
    ratio = table["times_faster"]
    assert ratio["n"] == 2 and 0 < ratio["low"] <= ratio["value"] <= ratio["high"]
    assert set(table["requests_per_second"]) == {ALONE, "4 clients"}
    written = json.loads((tmp_path / "out" / "serve_load.json").read_text())
    assert written.pop("made_by")["digests"]["model"] and written == table
    assert "12 of 12 answers the same" in "\n".join(told(table))
