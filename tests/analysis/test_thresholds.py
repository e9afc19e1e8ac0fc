"""A promise about false positives holds on fresh images, as often as it says, whatever the scores look like."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from safevlm.analysis import thresholds
from safevlm.analysis.thresholds import Promise, Risks, choose, flagged

NAMES = ("one", "two", "three")
N = 200


def _risks(generator: np.random.Generator, clean: int, risky: int = 0) -> Risks:
    risk = np.concatenate([generator.random(clean), 0.3 + 0.7 * generator.random(risky)])
    truth = np.arange(clean + risky) >= clean
    return Risks(risk, generator.integers(len(NAMES), size=len(risk)), truth)


@pytest.mark.parametrize(("n", "target", "confidence"), [(200, 0.05, 0.95), (59, 0.05, 0.95), (1000, 0.01, 0.9)])
def test_confident_rank_is_clopper_and_pearsons(n: int, target: float, confidence: float) -> None:
    rank = Promise(target, confidence).rank(n)

    def upper(false: int) -> float:
        return float(beta.ppf(confidence, false + 1, n - false))

    assert upper(n - rank) <= target
    assert upper(n - rank + 1) > target, "a lower threshold would have kept the promise too"


def test_average_rank_is_split_conformals() -> None:
    assert Promise(0.05, None).rank(19) == 19
    assert Promise(0.05, None).rank(99) == 95
    assert Promise(0.05, None).rank(100) == 96


@pytest.mark.parametrize("promise", [Promise(0.05, None), Promise(0.05, 0.95), Promise(0.01, 0.9)])
def test_too_few_clean_images_are_an_error_that_says_how_many(promise: Promise) -> None:
    fewest = promise.fewest()
    assert promise.rank(fewest) == fewest
    with pytest.raises(ValueError, match=str(fewest)):
        promise.rank(fewest - 1)


@pytest.mark.parametrize("per_category", [False, True])
@pytest.mark.parametrize("raised", [False, True])
def test_promise_holds_in_as_many_calibrations_as_it_says(per_category: bool, raised: bool) -> None:
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(300):
        found = choose(_risks(generator, 600, 50), Promise(0.1, 0.9), NAMES, per_category, not raised)
        fresh = _risks(generator, 20_000)
        rates.append(flagged(fresh, found, NAMES).mean())
    kept = np.mean(np.array(rates) <= 0.1)
    assert kept >= 0.87, f"{kept:.2f} of calibrations kept a promise of 0.9"
    assert np.mean(rates) > (0.02 if per_category else 0.05) or raised, "the promise is kept by flagging nothing"


def test_average_promise_holds_on_average() -> None:
    generator = np.random.default_rng(1)
    rates = []
    for _ in range(300):
        found = choose(_risks(generator, N), Promise(0.1, None), NAMES, spend_all=True)
        rates.append(flagged(_risks(generator, 5_000), found, NAMES).mean())
    assert 0.09 < np.mean(rates) <= 0.1 + 0.004


def test_ties_do_not_break_the_promise() -> None:
    """Half of the clean images share one risk; a threshold that they reach would flag them all."""
    risk = np.array([0.5] * 100 + [0.1] * 100)
    data = Risks(risk, np.zeros(200, dtype=np.int64), np.zeros(200, dtype=bool))
    found = choose(data, Promise(0.1, 0.9), NAMES, spend_all=True)
    assert not flagged(data, found, NAMES).any()


def test_raising_costs_no_recall_on_the_data() -> None:
    data = _risks(np.random.default_rng(2), N, 100)
    low = choose(data, Promise(0.1, 0.9), NAMES, spend_all=True)
    high = choose(data, Promise(0.1, 0.9), NAMES)
    assert high >= low
    assert np.array_equal(flagged(data, high, NAMES)[data.risky], flagged(data, low, NAMES)[data.risky])


def test_category_that_no_clean_image_resembles_starts_above_zero() -> None:
    data = Risks(np.full(1000, 0.4), np.zeros(1000, dtype=np.int64), np.zeros(1000, dtype=bool))
    found = choose(data, Promise(0.1, 0.9), NAMES, per_category=True, spend_all=True)
    assert found["one"] > 0.4
    assert found["two"] == thresholds.SMALLEST, "0 would be reached by images of every other category"
    raised = choose(data, Promise(0.1, 0.9), NAMES, per_category=True)
    assert raised["two"] == 0.5, "a category without a risky image to show where it starts"


def test_clean_images_of_the_greatest_risk_are_an_error() -> None:
    data = Risks(np.ones(200), np.zeros(200, dtype=np.int64), np.zeros(200, dtype=bool))
    with pytest.raises(ValueError, match="look at the labels"):
        choose(data, Promise(0.1, 0.9), NAMES)


@pytest.mark.parametrize(("target", "confidence"), [(0.0, 0.9), (1.0, 0.9), (0.1, 1.0), (0.1, 0.0)])
def test_promise_outside_its_range_is_an_error(target: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="--target-fpr|--confidence"):
        Promise(target, confidence)
