"""What the grid counts: harm by attack, wrong refusals and right answers, on clean and on changed images.

A column is a measure over groups of one side. Which measures there are is a matter of the judge
(`safevlm.evaluation.metrics.measures`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from safevlm.data.perturbations import PERTURBATIONS, parse
from safevlm.evaluation.grid.rows import AS_THEY_ARE, GridRow, Trial
from safevlm.evaluation.judges.provenance import provenance_of
from safevlm.evaluation.metrics.measures import MEASURES
from safevlm.evaluation.metrics.rates import Rate, measured
from safevlm.evaluation.suites import Suite
from safevlm.evaluation.suites.groups import SIDES, Side


@dataclass(frozen=True)
class GridColumn:
    name: str
    title: str
    """What is asked, in a word or two."""
    side: Side
    measure: str
    groups: tuple[str, ...]
    perturb: str
    """As `run.json` names it."""
    is_whole: bool
    """Whether it is about all groups of its side, where there are several."""

    @property
    def lower_is_better(self) -> bool:
        return MEASURES[self.measure].title.endswith("↓")

    def of(self, trial: Trial) -> Rate | None:
        """The trial's rate; None where its run was not asked this."""
        run = trial.runs.get(self.perturb)
        if run is None:
            return None
        scores = [score for score in run.scores.values() if score.group in self.groups]
        return measured(scores, MEASURES[self.measure]) if scores else None


def columns_of(rows: Sequence[GridRow]) -> list[GridColumn]:
    """Harm first, then what is lost: by measure, groups as they are before changed images."""
    first = next(iter(rows[0].trials[0].runs.values()))
    suite, provenance = first.suite, provenance_of(first)
    asked = _asked(rows, suite)
    found = []
    for side in SIDES:
        for measure in provenance.measures(side):
            for perturb, groups in asked.items():
                own = tuple(group for group in groups if suite.side_of(group) == side)
                found += _clean(side, measure, own) if perturb == AS_THEY_ARE else _changed(side, measure, own, perturb)
    return found


def _asked(rows: Sequence[GridRow], suite: Suite) -> Mapping[str, list[str]]:
    """Groups by perturbation, clean images first."""
    groups: dict[str, set[str]] = {AS_THEY_ARE: set()}
    for trial in (trial for row in rows for trial in row.trials):
        for perturb, run in trial.runs.items():
            groups.setdefault(perturb, set()).update(reply["group"] for reply in run.replies)
    return {perturb: suite.in_order(groups[perturb]) for perturb in sorted(groups, key=_rank)}


def _rank(perturb: str) -> tuple[int, float]:
    """As in the table of perturbations, by strength."""
    change = parse(perturb)
    return (list(PERTURBATIONS).index(change.name), change.strength) if change else (-1, 0.0)


def _clean(side: Side, measure: str, groups: tuple[str, ...]) -> list[GridColumn]:
    whole = [GridColumn(f"{measure}:all", f"all {side}", side, measure, groups, AS_THEY_ARE, True)] if groups else []
    if len(groups) < 2:
        return whole
    return [
        *(
            GridColumn(f"{measure}:{group}", group.replace("_", " "), side, measure, (group,), AS_THEY_ARE, False)
            for group in groups
        ),
        *whole,
    ]


def _changed(side: Side, measure: str, groups: tuple[str, ...], perturb: str) -> list[GridColumn]:
    title = perturb.replace(":", " ")
    return [GridColumn(f"{measure}@{perturb}", title, side, measure, groups, perturb, False)] if groups else []
