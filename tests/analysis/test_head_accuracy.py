"""Numbers about verdicts, against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from safevlm.analysis.curves import curves
from safevlm.analysis.head_accuracy import determination, level_from_category, measure, one_versus_rest
from safevlm.analysis.verdicts import DetectorVerdicts, confusion, union
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from tests.analysis import scenes

PAIRS = [
    (("illegal", "must_refuse"), ("illegal", "must_refuse"), 0.9),
    (("illegal", "may_refuse"), ("illegal", "must_refuse"), 0.8),
    (("illegal", "must_refuse"), (CLEAN, SAFE), 0.6),
    (("privacy", "careful"), ("insults", "careful"), 0.5),
    ((CLEAN, SAFE), (CLEAN, SAFE), 0.9),
    ((CLEAN, SAFE), ("politics", "careful"), 0.4),
]


def _made() -> DetectorVerdicts:
    return scenes.judged(PAIRS)


def test_accuracy_f1_and_confusion_are_what_they_are_called() -> None:
    made = _made()
    found = measure(made, DEFAULT, seed=0)
    truth, said = made.truth("category"), made.said("category")
    assert found["category"]["accuracy"]["value"] == pytest.approx(3 / 6)
    assert found["level"]["accuracy"]["value"] == pytest.approx(3 / 6)
    macro = f1_score(truth, said, labels=sorted(set(truth)), average="macro")
    assert found["category"]["macro_f1"]["value"] == pytest.approx(macro)
    assert found["category"]["weighted_f1"]["value"] == pytest.approx(f1_score(truth, said, average="weighted"))
    counts = confusion(made, "category", DEFAULT.category_names)
    row, column = DEFAULT.category_id("privacy"), DEFAULT.category_id("insults")
    assert counts.sum() == 6 and counts[row, column] == 1
    assert found["category"]["by_name"]["illegal"]["accuracy"]["value"] == pytest.approx(2 / 3)


def test_false_positives_are_clean_images_that_were_flagged() -> None:
    risk = measure(_made(), DEFAULT, seed=0)["risk"]
    assert (risk["false_positive_rate"]["value"], risk["false_positive_rate"]["n"]) == (0.5, 2)
    assert (risk["recall"]["value"], risk["recall"]["n"]) == (0.75, 4)


def test_level_from_category_is_the_commonest_level() -> None:
    assert level_from_category(_made()).value == pytest.approx(5 / 6)
    assert 0 < determination(_made()) < 1


def test_level_that_is_a_function_of_category_is_told_by_it() -> None:
    pairs = [(("illegal", "must_refuse"), (CLEAN, SAFE), 1.0), ((CLEAN, SAFE), (CLEAN, SAFE), 1.0)]
    assert determination(scenes.judged(pairs * 5)) == pytest.approx(1)
    apart = [
        ((category, level), (CLEAN, SAFE), 1.0)
        for category in ("illegal", "privacy")
        for level in ("careful", "must_refuse")
    ]
    assert determination(scenes.judged(apart)) == pytest.approx(0, abs=1e-12)


def test_curves_are_scikit_learns_ties_included() -> None:
    generator = np.random.default_rng(0)
    truth = generator.random(200) < 0.3
    scores = np.round(truth * 0.3 + generator.random(200), 1)
    found = curves(scores, truth, seed=0)
    assert found.auroc.value == pytest.approx(roc_auc_score(truth, scores))
    assert found.ap.value == pytest.approx(average_precision_score(truth, scores))
    assert found.auroc.low < found.auroc.value < found.auroc.high


def test_curves_need_both_kinds_of_image() -> None:
    assert curves(np.ones(3), np.ones(3, dtype=bool), 0) is None


def test_detector_without_probabilities_has_no_curves() -> None:
    made = _made()
    bare = DetectorVerdicts(
        "bare", made.images, tuple(type(made.verdicts[0])(v.level, v.category) for v in made.verdicts)
    )
    assert bare.risk is None and one_versus_rest(bare, DEFAULT, 0) == {}
    assert measure(bare, DEFAULT, 0)["category"]["accuracy"] == measure(made, DEFAULT, 0)["category"]["accuracy"]


def test_union_holds_every_image_once() -> None:
    assert len(union([_made(), _made()])) == 12
