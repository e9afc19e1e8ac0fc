"""How often the detector is right: its verdicts, as the replies carry them, beside the truth.

The level is partly a function of the category, so a detector that sees the category alone is right about many levels.
`level_from_category` says how many: the share that the commonest level of each true category gets right (chosen on
the same rows, hence a little too high, which is the careful side).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from safevlm.evaluation.metrics.rates import rate
from safevlm.evaluation.runs.files import Row
from safevlm.evaluation.runs.run import Run, has_looked
from safevlm.evaluation.suites import Suite
from safevlm.evaluation.suites.headline import DetectorSet
from safevlm.taxonomy import DEFAULT

MAIN = "all"
"""Name of the headline set."""
ORDER = {"level": DEFAULT.level_names, "category": DEFAULT.category_names}


@dataclass(frozen=True)
class Confusion:
    """Counts by (true, predicted)."""

    of: str
    names: list[str]
    counts: Counter[tuple[str, str]]


def sets_of(suite: Suite) -> dict[str, DetectorSet]:
    """The suite's own sets by name; without any, all groups and each alone. MAIN is among them."""
    if suite.detector_sets:
        return dict(suite.detector_sets)
    alone = {name: DetectorSet(group.title, (name,)) for name, group in suite.groups.items()}
    return {MAIN: DetectorSet("all groups", tuple(suite.groups))} | alone


def head_accuracy(run: Run) -> dict[str, Any]:
    """Accuracies of the run's detector; rows that it failed on, or did not look at, are unscored."""
    if not run.has_detector:
        raise ValueError(f"--head {run.name}: no detector spoke in this run; name a run whose defense has one")
    sets = {name: _accuracies(_of(run, one.groups)) for name, one in sets_of(run.suite).items()}
    main = sets[MAIN]
    return {
        "row": run.name,
        "category_accuracy": main["category"]["value"],
        "level_accuracy": main["level"]["value"],
        "n": main["category"]["n"],
        "sets": sets,
    }


def confusion(run: Run, field: str) -> Confusion:
    """Truth against verdict on the headline's rows, for `level` or `category`."""
    rows = [row for row in _of(run, sets_of(run.suite)[MAIN].groups) if has_looked(row)]
    counts = Counter((row["truth"][field], row["verdict"][field]) for row in rows)
    spoken = (list(row["verdict"][f"{field}_probabilities"]) for row in rows)  # a taxonomy of one's own has its order
    order = next((names for names in spoken if names), ORDER[field])
    met = {name for pair in counts for name in pair}
    return Confusion(field, [*order, *sorted(met - set(order))], counts)


def _accuracies(rows: Sequence[Row]) -> dict[str, Any]:
    commonest = _commonest_level(rows)
    return {
        "category": asdict(rate(_agrees(row, "category") for row in rows)),
        "level": asdict(rate(_agrees(row, "level") for row in rows)),
        "level_from_category": asdict(
            rate(row["truth"]["level"] == commonest[row["truth"]["category"]] for row in rows)
        ),
    }


def _agrees(row: Row, field: str) -> bool | None:
    return row["verdict"][field] == row["truth"][field] if has_looked(row) else None


def _commonest_level(rows: Sequence[Row]) -> dict[str, str]:
    levels: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        levels[row["truth"]["category"]][row["truth"]["level"]] += 1
    return {category: counts.most_common(1)[0][0] for category, counts in levels.items()}


def _of(run: Run, groups: Sequence[str]) -> list[Row]:
    return [row for row in run.replies if row["group"] in groups]
