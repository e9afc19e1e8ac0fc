"""A row against another one, paired by question: the difference, and McNemar's p corrected for how many are asked.

Holm's correction over all cells that are compared with the same row: of the whole grid, one family. The trap is that
seeds share their questions; they are compared one by one and never pooled as if they were more questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from safevlm.evaluation.grid.columns import GridColumn
from safevlm.evaluation.grid.rows import GridRow, Trial
from safevlm.evaluation.metrics.comparison import check_alike, paired
from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.runs.run import Run

Place = tuple[str, str, str]
"""Row, seed and column of a cell."""
KEPT = ("difference", "low", "high", "p", "bounds")


def against(
    reference: GridRow, rows: Sequence[GridRow], columns: Sequence[GridColumn], seed: int
) -> tuple[dict[Place, dict[str, Any]], list[str]]:
    """What every other row's cells differ by; and why some could not be compared."""
    found: dict[Place, dict[str, Any]] = {}
    problems: dict[str, None] = {}
    for row in rows:
        for trial in row.trials:
            other = reference.trial(trial.seed)
            for column in columns if row is not reference else ():
                try:
                    one = _compared(other, trial, column, seed)
                except ValueError as error:
                    problems[f"{row.name} ({trial.seed}) against {reference.name}: {error}"] = None
                    continue
                if one is not None:
                    found[row.name, trial.seed, column.name] = one
    corrected = holm({place: one["p"] for place, one in found.items() if one["p"] is not None})
    return {place: one | {"p_holm": corrected.get(place)} for place, one in found.items()}, list(problems)


def holm(ps: Mapping[Place, float]) -> dict[Place, float]:
    """p by place → p corrected for all of them (Holm's step-down)."""
    highest, corrected = 0.0, {}
    for rank, (place, p) in enumerate(sorted(ps.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(ps) - rank) * p))
        corrected[place] = highest
    return corrected


def _compared(a: Trial, b: Trial, column: GridColumn, seed: int) -> dict[str, Any] | None:
    """None where one of them was not asked this, or nothing of it has both scores."""
    one, two = a.runs.get(column.perturb), b.runs.get(column.perturb)
    if one is None or two is None:
        return None
    check_alike(one, two)
    ids = _shared(one, two, column)
    row = asdict(paired(column.name, column.measure, MEASURES[column.measure], one.scores, two.scores, ids, seed))
    if row["difference"] is None:
        return None
    return {name: row[name] for name in KEPT} | {
        "pairs": row["a"]["n"],
        "unscored": len(row["unscored"]),
        "only_there": len(row["only_a"]),
        "only_here": len(row["only_b"]),
    }


def _shared(a: Run, b: Run, column: GridColumn) -> list[str]:
    return [name for name, score in a.scores.items() if score.group in column.groups and name in b.scores]
