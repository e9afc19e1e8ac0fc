"""`safevlm analyze head`: how often a detector is right, per data set, category and level, and at which threshold.

The level is partly a function of the category, so a detector that knows the category alone gets many levels right.
`level_from_category` says how many (the commonest level of each true category, chosen on the same images, hence a
little too high: the careful side), `determination` how much of the level's uncertainty the category takes away.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from safevlm import intervals
from safevlm.analysis import accuracy_figures, summary
from safevlm.analysis.curves import Curves, curves
from safevlm.analysis.judged_sets import JudgedSetsOptions, guarded_sets
from safevlm.analysis.verdicts import READ_OUTS, DetectorVerdicts, confusion, union
from safevlm.intervals import Floats, Interval, share
from safevlm.taxonomy import Taxonomy

Ids = NDArray[np.int64]


def run(options: JudgedSetsOptions) -> dict[str, Any]:
    """Verdicts → numbers per set, figures, `summary.json`; the numbers."""
    given = guarded_sets("head", options)
    loaded, sets, guard = given.loaded, given.sets, given.guard
    config = loaded.safe_llava.config
    shown = given.judged(options.batch_size)
    numbers = {one.name: measure(one, config.taxonomy, options.seed) for one in shown}
    risk_curves = {one.name: _against_clean(one, shown[-1], options.seed) for one in shown}
    by_category = one_versus_rest(shown[-1], config.taxonomy, options.seed)
    for name, found in risk_curves.items():
        numbers[name]["risk"] |= found.to_dict() if found else {}
    numbers[shown[-1].name]["one_versus_rest"] = {name: found.to_dict() for name, found in by_category.items()}
    options.out.mkdir(parents=True, exist_ok=True)
    files = [
        *accuracy_figures.performance(options.out, numbers),
        *accuracy_figures.confusions(options.out, shown, config.taxonomy),
        *accuracy_figures.risk_curves(options.out, risk_curves),
        *accuracy_figures.category_curves(options.out, by_category, config.taxonomy),
    ]
    result = {"detector": guard.name, "sets": numbers, "files": files}
    summary.write("head", options.out, loaded, sets, options.seed, result)
    _print(numbers)
    return result


def measure(judged: DetectorVerdicts, taxonomy: Taxonomy, seed: int) -> dict[str, Any]:
    """All numbers of a set that need no threshold."""
    return {
        "n": len(judged),
        "category": _read_out(judged, "category", taxonomy.category_names, seed),
        "level": _read_out(judged, "level", taxonomy.level_names, seed)
        | {"from_category": level_from_category(judged).to_dict(), "determination": determination(judged)},
        "risk": {
            "recall": share(judged.flagged[judged.risky]).to_dict(),
            "false_positive_rate": share(judged.flagged[~judged.risky]).to_dict(),
        },
    }


def level_from_category(judged: DetectorVerdicts) -> Interval:
    """How often the commonest level of the true category is the true level."""
    pairs = _labelled_pairs(judged)
    levels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for category, level in pairs:
        levels[category][level] += 1
    commonest = {category: counts.most_common(1)[0][0] for category, counts in levels.items()}
    return share(np.array([commonest[category] == level for category, level in pairs], dtype=bool))


def determination(judged: DetectorVerdicts) -> float | None:
    """Mutual information of category and level over the level's entropy: 1, the category tells all; None: no spread."""
    pairs = Counter(_labelled_pairs(judged))
    n = pairs.total()
    level = _entropy(Counter({key: sum(c for (_, b), c in pairs.items() if b == key) for _, key in pairs}), n)
    category = _entropy(Counter({key: sum(c for (a, _), c in pairs.items() if a == key) for key, _ in pairs}), n)
    return (category + level - _entropy(pairs, n)) / level if level > 0 else None


def one_versus_rest(judged: DetectorVerdicts, taxonomy: Taxonomy, seed: int) -> dict[str, Curves]:
    """Curves of each category's own probability against all other images with a category."""
    labelled = judged.at([at for at, name in enumerate(judged.truth("category")) if name is not None])
    probabilities = labelled.probabilities("category", taxonomy.category_names) if len(labelled) else None
    if probabilities is None:
        return {}
    truth = np.array(labelled.truth("category"))
    found = {name: curves(probabilities[:, at], truth == name, seed) for at, name in enumerate(taxonomy.category_names)}
    return {name: one for name, one in found.items() if one is not None}


def _against_clean(judged: DetectorVerdicts, everything: DetectorVerdicts, seed: int) -> Curves | None:
    """Curves of the risk; a set without clean images is set against the clean ones of all sets."""
    if judged.risky.all():
        judged = union([judged, everything.at(np.flatnonzero(~everything.risky))])
    return None if judged.risk is None else curves(judged.risk, judged.risky, seed)


def _read_out(judged: DetectorVerdicts, read_out: str, names: Sequence[str], seed: int) -> dict[str, Any]:
    counts = confusion(judged, read_out, names)
    labelled = [at for at, name in enumerate(judged.truth(read_out)) if name is not None]
    own = judged.at(labelled)
    truth = np.array([names.index(name) for name in own.truth(read_out)], dtype=np.int64)
    said = np.array([names.index(name) for name in own.said(read_out)], dtype=np.int64)
    return {
        "accuracy": share(truth == said).to_dict(),
        "macro_f1": _f1(truth, said, _macro, seed),
        "weighted_f1": _f1(truth, said, _by_support, seed),
        "names": list(names),
        "confusion": counts.tolist(),
        "by_name": {name: _one(counts, at) for at, name in enumerate(names) if counts[at].sum()},
    }


def _one(counts: Ids, at: int) -> dict[str, Any]:
    """Recall is the accuracy within the name; both have Wilson's interval."""
    right, support, said = int(counts[at, at]), int(counts[at].sum()), int(counts[:, at].sum())
    return {
        "n": support,
        "accuracy": _of(right, support),
        "precision": _of(right, said),
        "f1": 2 * right / (support + said),
    }


def _of(hits: int, n: int) -> dict[str, Any]:
    return share(np.arange(n) < hits).to_dict()


def _f1(truth: Ids, said: Ids, average: Any, seed: int) -> dict[str, Any]:
    if len(truth) == 0:
        return Interval(None, 0).to_dict()
    size = int(max(truth.max(), said.max())) + 1

    def statistic(weights: Floats) -> float:
        right = np.bincount(truth, weights * (truth == said), size)
        support, found = np.bincount(truth, weights, size), np.bincount(said, weights, size)
        return average(2 * right / np.maximum(support + found, 1e-12), support)

    return intervals.weighted(statistic, truth, seed).to_dict()


def _macro(scores: Floats, support: Floats) -> float:
    """Mean over the names that occur in the truth."""
    return float(scores[support > 0].mean())


def _by_support(scores: Floats, support: Floats) -> float:
    return float((scores * support).sum() / support.sum())


def _labelled_pairs(judged: DetectorVerdicts) -> list[tuple[str, str]]:
    pairs = zip(judged.truth("category"), judged.truth("level"), strict=True)
    return [(category, level) for category, level in pairs if category is not None and level is not None]


def _entropy(counts: Mapping[Any, int], n: int) -> float:
    parts = np.array([count for count in counts.values() if count]) / max(n, 1)
    return float(-(parts * np.log(parts)).sum())


def _print(numbers: Mapping[str, Any]) -> None:
    rows = []
    for name, one in numbers.items():
        cells = [one[read_out]["accuracy"] for read_out in READ_OUTS] + [one["level"]["from_category"]]
        cells += [one["risk"][key] for key in ("recall", "false_positive_rate", "auroc") if key in one["risk"]]
        rows.append([name, str(one["n"]), *(str(Interval(**cell)) for cell in cells)])
    head = ["set", "n", *READ_OUTS, "level by category", "risk recall", "false positives", "AUROC"]
    summary.print_table(head, [row + ["–"] * (len(head) - len(row)) for row in rows])
