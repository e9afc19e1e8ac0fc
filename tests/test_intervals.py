"""One place for intervals: known values, and the numbers that committed results stand on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from safevlm import intervals

ROOT = Path(__file__).parents[1]
SHARES = ("asr", "asr_unseen", "asr_typographic", "over_refusal", "utility")
VALUES = [1.13, 0.97, 1.4, 1.22, 1.05, 1.31, 0.99, 1.18, 1.27, 1.01]


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # Newcombe 1998 (Statistics in Medicine 17), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_interval_matches_known_values(hits: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses_what_is_no_share(hits: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"{hits} of {n}"):
        intervals.wilson(hits, n)


def test_the_same_seed_gives_the_same_bootstrap() -> None:
    """Recorded numbers: a change of seeds, draws or percentiles changes every published interval."""
    grades = [0.0, 0.25, 1.0, 0.5, 0.5, 0.75, 1.0, 0.0, 0.25]
    assert intervals.bootstrap_mean(grades, seed=3) == (0.25, 0.7222222222222222)
    assert intervals.bootstrap_median(VALUES, seed=3) == (1.01, 1.27)
    values = np.array(VALUES)
    mean = intervals.mean(values, seed=3)
    assert (mean.low, mean.high) == pytest.approx((1.06995, 1.2335750), abs=1e-9)
    sides = np.array([0] * 4 + [1] * 6)
    weighted = intervals.weighted(lambda weights: float(weights @ values / weights.sum()), sides, seed=3)
    assert (weighted.low, weighted.high) == pytest.approx((1.068475, 1.237), abs=1e-9)


def test_committed_shares_have_wilsons_interval() -> None:
    table = json.loads((ROOT / "eval" / "results" / "miniature" / "summary.json").read_text(encoding="utf-8"))
    found = [metrics[name] for metrics in table["suites"]["miniature"].values() for name in SHARES if name in metrics]
    assert len(found) > 20, "nothing to compare: was the result file renamed?"
    for one in found:
        low, high = intervals.wilson(round(one["value"] * one["n"]), one["n"])
        assert (one["low"], one["high"]) == pytest.approx((low, high), abs=1e-9), one


def test_intervals_load_no_torch() -> None:
    code = "import sys, safevlm.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0, "judging and reporting need no torch"
