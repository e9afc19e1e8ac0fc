"""Reported counts are corrected for what the detector does wrong, and the intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from safevlm.analysis.audit.estimate import estimate, rogan_gladen, solve

NAMES = ["first", "second", "clean"]
RATES = np.array([[0.90, 0.06, 0.004], [0.05, 0.80, 0.006], [0.05, 0.14, 0.990]])  # reported x true


def _calibration(generator: np.random.Generator, sizes: tuple[int, ...] = (150, 150, 3_000)) -> np.ndarray:
    return np.stack([generator.multinomial(size, RATES[:, at]) for at, size in enumerate(sizes)], axis=1)


def _reported(generator: np.random.Generator, true: list[int]) -> np.ndarray:
    return sum(generator.multinomial(count, RATES[:, at]) for at, count in enumerate(true))


def test_the_true_counts_come_back_from_what_such_a_detector_reports() -> None:
    true = np.array([300.0, 100.0, 19_600.0])
    assert np.allclose(solve(RATES @ true, RATES), true, atol=1e-3)


def test_two_categories_give_rogan_and_gladens_estimator() -> None:
    sensitivity, specificity = 0.9, 0.95
    rates = np.array([[sensitivity, 1 - specificity], [1 - sensitivity, specificity]])
    for share in (0.06, 0.2, 0.7):
        counts = np.array([share, 1 - share]) * 1_000
        assert solve(counts, rates)[0] / 1_000 == pytest.approx(rogan_gladen(share, sensitivity, specificity), abs=1e-6)


def test_no_count_is_negative_and_none_is_lost() -> None:
    """Fewer reports than false alarms alone would give: the estimate is zero, not below."""
    found = solve(np.array([10.0, 20.0, 9_970.0]), RATES)
    assert (found >= 0).all() and found.sum() == pytest.approx(10_000) and found[:2].sum() < 5
    assert rogan_gladen(0.001, 0.9, 0.95) == 0


def test_a_perfect_detector_is_believed() -> None:
    found = estimate([30, 20, 950], np.diag([500, 500, 500]), NAMES, clean=2)
    assert [round(count.value) for count in found.categories.values()] == [30, 20, 950]
    assert found.risky.value == 50 and found.risky.low <= 50 <= found.risky.high < 60


def test_an_error_that_was_never_seen_is_not_taken_for_impossible() -> None:
    """Without a false alarm among 100 clean images, 30 reports among 10,000 may all be false."""
    found = estimate([30, 0, 9_970], np.diag([100, 100, 100]), NAMES, clean=2)
    assert found.categories["first"].low == 0


@pytest.mark.slow
@pytest.mark.parametrize("true", [[300, 100, 19_600], [40, 160, 19_800], [0, 200, 19_800]])
def test_intervals_hold_the_truth_about_as_often_as_they_say(true: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safevlm.analysis.audit.estimate.DRAWS", 200)
    generator, held, runs = np.random.default_rng(sum(true) + true[0]), [], 60
    for seed in range(runs):
        found = estimate(_reported(generator, true).tolist(), _calibration(generator), NAMES, clean=2, seed=seed)
        held += [count.low <= known <= count.high for count, known in zip(found.categories.values(), true, strict=True)]
        held.append(found.risky.low <= sum(true[:2]) <= found.risky.high)
    assert np.mean(held) >= 0.90, f"95 % intervals held the truth in {np.mean(held):.1%} of {len(held)} cases"


def test_a_larger_calibration_narrows_the_interval() -> None:
    true = np.array([300, 100, 19_600])
    widths = []
    for scale in (1, 16):
        calibration = (RATES * np.array([100, 100, 1_000]) * scale).round().astype(int)
        found = estimate((RATES @ true).round().astype(int).tolist(), calibration, NAMES, clean=2)
        widths.append(found.risky.high - found.risky.low)
    assert widths[1] < widths[0] / 2, widths


def test_a_category_without_calibration_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"no image of \['second'\]"):
        estimate([1, 2, 3], np.diag([5, 0, 5]), NAMES, clean=2)


def test_nothing_reported_is_nothing_estimated() -> None:
    found = estimate([0, 0, 0], np.diag([5, 5, 5]), NAMES, clean=2)
    assert found.risky.value == found.risky.high == 0
