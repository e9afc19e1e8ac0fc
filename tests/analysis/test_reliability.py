"""Calibration errors and temperatures, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from safevlm.analysis import reliability
from safevlm.defenses import calibration


def _sampled(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities that are right as they stand, then sharpened: logits times `sharpness`."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, 4)) * 2
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = np.array([generator.choice(4, p=row) for row in true])
    return reliability.tempered(true, 1 / sharpness), labels


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_sharpened_the_logits(sharpness: float) -> None:
    probabilities, labels = _sampled(4000, sharpness)
    assert reliability.fit_temperature(probabilities, labels) == pytest.approx(sharpness, rel=0.08)


def test_temperature_lowers_the_calibration_error() -> None:
    probabilities, labels = _sampled(4000, 3.0)
    cooled = reliability.tempered(probabilities, reliability.fit_temperature(probabilities, labels))
    before, after = (
        reliability.calibration_error(*reliability.top_label(table, labels), seed=0)
        for table in (probabilities, cooled)
    )
    assert after["high"] < before["low"]


def test_head_without_a_mistake_keeps_a_finite_temperature() -> None:
    probabilities = np.tile([0.9, 0.05, 0.05], (50, 1))
    assert reliability.fit_temperature(probabilities, np.zeros(50, dtype=np.int64)) > reliability.TEMPERATURES[0] * 2


def test_no_labels_leave_the_temperature_at_one() -> None:
    assert reliability.fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0


def test_error_of_known_bins() -> None:
    confidence = np.array([0.95] * 10 + [0.55] * 10)
    right = np.array([True] * 10 + [False] * 10)
    assert reliability.calibration_error(confidence, right, 0)["value"] == pytest.approx((0.05 + 0.55) / 2)
    found = reliability.bins(confidence, right)
    assert [(one.n, one.right) for one in found] == [(10, 0.0), (10, 1.0)]


def test_many_images_are_tempered_as_one_is() -> None:
    table = np.random.default_rng(0).dirichlet(np.ones(5), size=20)
    table[0] = [1, 0, 0, 0, 0]
    for row, got in zip(table, reliability.tempered(table, 2.5), strict=True):
        want = calibration.tempered(dict(enumerate(row.tolist())), 2.5)
        assert got == pytest.approx(list(want.values()), abs=1e-15)
