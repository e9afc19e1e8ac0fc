"""Silhouette and purity are scikit-learn's and a neighbour count's, and know apart from mixed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import silhouette_samples

from safevlm.analysis import separation


def _clouds(distance: float, n: int = 40, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    generator = np.random.default_rng(seed)
    labels = ["left", "right", "middle"] * (n // 3) + ["left"]
    centres = {"left": -distance, "right": distance, "middle": 0.0}
    vectors = generator.normal(size=(len(labels), 5)) + np.array([[centres[label]] * 5 for label in labels])
    return vectors.astype(np.float32), labels


def test_silhouette_is_scikit_learns() -> None:
    vectors, labels = _clouds(1.0)
    ours = separation.separation(vectors, labels).silhouette
    assert ours == pytest.approx(silhouette_samples(separation.standardised(vectors), labels), abs=1e-9)


def test_label_of_a_single_image_has_silhouette_zero() -> None:
    vectors, labels = _clouds(1.0)
    labels[0] = "alone"
    ours = separation.separation(vectors, labels).silhouette
    assert ours[0] == 0
    assert ours == pytest.approx(silhouette_samples(separation.standardised(vectors), labels), abs=1e-9)


def test_clouds_apart_are_pure_and_mixed_ones_are_chance() -> None:
    vectors, labels = _clouds(30.0)
    apart = separation.separation(vectors, labels)
    assert apart.silhouette.mean() > 0.9 and apart.purity.mean() == 1
    mixed = separation.separation(*_clouds(0.0))
    assert abs(mixed.purity.mean() - separation.chance(labels)) < 0.12


def test_one_dimension_of_great_size_does_not_drown_the_others() -> None:
    vectors, labels = _clouds(30.0)
    loud = np.random.default_rng(3).normal(size=(len(vectors), 1)).astype(np.float32) * 1e6
    assert separation.separation(np.hstack([vectors, loud]), labels).purity.mean() > 0.95


def test_gain_is_paired_and_has_the_right_sign() -> None:
    vectors, labels = _clouds(3.0)
    spaces = {"patches": _clouds(0.5)[0], "safety": vectors}
    gain = separation.table(spaces, labels, "patches", seed=0)["spaces"]["safety"]["gain_over_patches"]
    assert gain["silhouette"]["low"] > 0 and gain["purity"]["low"] > 0


def test_one_label_has_no_separation() -> None:
    vectors, _ = _clouds(1.0)
    assert separation.table({"patches": vectors}, ["same"] * len(vectors), "patches", 0) is None
