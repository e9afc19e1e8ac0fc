"""A section of the report: the runs of one suite that one judge scored in one way, and what is counted on them.

Both sides of safety stand in every section: a suite that lacks one says so in that side's column. Runs of another
suite, judge, prompt or decoding are another section, so that unlike numbers never share a column.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from safevlm.evaluation.judges.provenance import JudgeProvenance, provenance_of
from safevlm.evaluation.metrics.measures import MEASURES, Measure, Unit
from safevlm.evaluation.metrics.rates import NO_RATE, Bounds, Rate, measured, of_groups
from safevlm.evaluation.runs.files import Row, Score
from safevlm.evaluation.runs.run import Run
from safevlm.evaluation.suites import Suite
from safevlm.evaluation.suites.groups import SIDES, Group, Side
from safevlm.evaluation.suites.headline import PublishedTable

Cut = dict[str, dict[str, dict[str, Rate]]]
"""Rates by group (or category), run and measure."""
LATENCY = "latency_ratio"
MISSING_SIDES: Mapping[Side, str] = {"harmful": "asr", "benign": "over_refusal"}
"""What stands in the column of a side that a suite does not have."""


@dataclass(frozen=True)
class ReportColumn:
    """One number per run. `of` is None where the suite has no such side, and `absent` says so."""

    name: str
    title: str
    unit: Unit
    of: Callable[[Run], Rate] | None
    absent: str = ""


@dataclass(frozen=True)
class ReportSection:
    suite: Suite
    judge: JudgeProvenance
    runs: tuple[Run, ...]

    @property
    def has_own_table(self) -> bool:
        """Whether the suite's own columns are shown: it has some, and its own judge scored."""
        return bool(self.suite.headlines) and self.judge.kind == self.suite.judge

    @property
    def groups(self) -> Mapping[str, Group]:
        """Groups that some run was asked, in the order of the suite's table."""
        asked = self.suite.in_order(row["group"] for run in self.runs for row in run.replies)
        return {name: self.suite.groups[name] for name in asked}

    @cached_property
    def columns(self) -> tuple[ReportColumn, ...]:
        own = self._own_columns() if self.has_own_table else self._of_sides()
        return (*own, ReportColumn(LATENCY, "time × bare ↓", "times", lambda run: run.latency_ratio))

    @cached_property
    def table(self) -> dict[str, dict[str, Rate]]:
        """Rates by run and column; columns of a side that is not there are left out."""
        return {run.name: {one.name: one.of(run) for one in self.columns if one.of} for run in self.runs}

    @property
    def published(self) -> PublishedTable | None:
        return self.suite.published_scores.get(self.judge.kind)

    def unit_of(self, measure: str) -> Unit:
        return self.judge.unit if measure == "score" else "share"

    def measures(self, side: Side) -> dict[str, Measure]:
        return self.judge.measures(side)

    @cached_property
    def cuts(self) -> dict[str, dict[Side, Cut]]:
        """Rates by `group` and by `category`, on each side apart."""
        return {
            field: {
                side: {name: self._cut(side, field, name) for name in names}
                for side in SIDES
                if (names := self._names(field, side))
            }
            for field in ("group", "category")
        }

    def average(self, run: Run, measure: Measure, side: Side) -> Rate:
        """The plain mean of the side's groups, none of them missing."""
        names = [name for name, group in self.suite.groups.items() if group.side == side]
        scores = list(run.scores.values())
        return plain_mean([measured(of_groups(scores, (name,)), measure) for name in names])

    def _cut(self, side: Side, field: str, name: str) -> dict[str, dict[str, Rate]]:
        def belongs(row: Row) -> bool:
            return _field(row, field) == name and self.suite.groups[row["group"]].side == side

        scores = {run.name: _scores(run, belongs) for run in self.runs}
        measures = self.measures(side)
        return {run: {key: measured(own, one) for key, one in measures.items()} for run, own in scores.items()}

    def _names(self, field: str, side: Side) -> list[str]:
        if field == "group":
            return [name for name, group in self.groups.items() if group.side == side]
        rows = (row for run in self.runs for row in run.replies if self.suite.groups[row["group"]].side == side)
        return [name for name, _ in Counter(_field(row, field) for row in rows).most_common()]

    def _own_columns(self) -> list[ReportColumn]:
        return [
            ReportColumn(one.name, one.title, "share", self._of_groups(one.groups, MEASURES[one.measure]))
            for one in self.suite.headlines
        ]

    def _of_groups(self, groups: Sequence[str], measure: Measure) -> Callable[[Run], Rate]:
        return lambda run: measured(of_groups(list(run.scores.values()), groups), measure)

    def _of_sides(self) -> list[ReportColumn]:
        present = {group.side for group in self.suite.groups.values()}
        columns: list[ReportColumn] = []
        for side in SIDES:
            if side in present and self.measures(side):
                columns.extend(self._of_side(side))
            elif side in present and side in MISSING_SIDES:
                name = MISSING_SIDES[side]
                columns.append(ReportColumn(name, MEASURES[name].title, "share", None, f"judge counts no {side} side"))
            elif side in MISSING_SIDES and present != {"scored"}:
                name = MISSING_SIDES[side]
                columns.append(ReportColumn(name, MEASURES[name].title, "share", None, f"no {side} side"))
        return columns

    def _of_side(self, side: Side) -> list[ReportColumn]:
        several = sum(group.side == side for group in self.suite.groups.values()) > 1
        columns: list[ReportColumn] = []
        for name, measure in self.measures(side).items():
            unit = self.unit_of(name)
            if several and self.suite.averages_groups:
                title = f"{measure.title[:-2].removesuffix(', mean')}, mean of groups {measure.title[-1]}"
                columns.append(ReportColumn(f"{name}_of_groups", title, unit, self._averaged(side, measure)))
            own = name if all(one.name != name for one in columns) else f"{name}_{side}"
            title = f"{measure.title[:-2]}, all rows {measure.title[-1]}" if several else measure.title
            columns.append(ReportColumn(own, title, unit, self._pooled(side, measure)))
        return columns

    def _pooled(self, side: Side, measure: Measure) -> Callable[[Run], Rate]:
        return lambda run: measured(_scores(run, lambda row: self.suite.groups[row["group"]].side == side), measure)

    def _averaged(self, side: Side, measure: Measure) -> Callable[[Run], Rate]:
        return lambda run: self.average(run, measure, side)


def sections_of(runs: Sequence[Run]) -> list[ReportSection]:
    """Runs by suite and judging, in the order given."""
    found: dict[tuple[str, str, tuple[str, str]], list[tuple[Run, JudgeProvenance]]] = {}
    for run in runs:
        judge = provenance_of(run)
        found.setdefault((run.suite.name, run.suite.digest, judge.key), []).append((run, judge))
    return [ReportSection(pairs[0][0].suite, pairs[0][1], tuple(run for run, _ in pairs)) for pairs in found.values()]


def remarks(section: ReportSection) -> list[str]:
    """What a reader must know before comparing the rows of a section."""
    found = [
        f"{run.name}: {len(run.replies)} of {run.record.get('n')} requests have a reply"
        for run in section.runs
        if not run.is_finished
    ]
    found += [
        f"{run.name}: asked with --limit: {run.record['n']:,} of {run.record['n_without_limit']:,} requests"
        for run in section.runs
        if run.record.get("n_without_limit", 0) > run.record.get("n", 0)
    ]
    digests = {run.record.get("digests", {}).get("samples") for run in section.runs}
    asked = {frozenset(run.scores) for run in section.runs}
    if len(digests) > 1:
        found.append("the runs were asked other questions or other images; their rows do not compare")
    elif len(asked) > 1:
        found.append("the runs answered different parts of the suite; compare them with `safevlm eval compare`")
    if any(run.record.get("partial") for run in section.runs):
        found.append("asked with --partial: rows of the suite may be missing; see its published counts")
    lengths = sorted({int(run.record["max_new_tokens"]) for run in section.runs if "max_new_tokens" in run.record})
    if len(lengths) > 1:
        found.append(f"answers could be of different length (max_new_tokens {', '.join(map(str, lengths))})")
    changes = sorted({str(run.record.get("perturb")) for run in section.runs})
    if len(changes) > 1:
        found.append(f"images were changed in different ways ({', '.join(changes)}); their rows do not compare")
    missing = [group.title for name, group in section.suite.groups.items() if name not in section.groups]
    if missing:
        found.append(f"not asked: {', '.join(missing)}")
    return found


def plain_mean(rates: Sequence[Rate]) -> Rate:
    """The mean of independent rates, with the interval that follows from theirs (MOVER); None when one has no value."""
    n, unscored = sum(one.n for one in rates), sum(one.unscored for one in rates)
    bounds = _mean_bounds(rates)
    known = [
        (one.value, one.low, one.high)
        for one in rates
        if one.value is not None and one.low is not None and one.high is not None
    ]
    if not known or len(known) < len(rates):
        return Rate(None, n, None, None, unscored, bounds) if n or unscored else NO_RATE
    value = math.fsum(one for one, _, _ in known) / len(known)
    down = math.sqrt(math.fsum((one - low) ** 2 for one, low, _ in known)) / len(known)
    up = math.sqrt(math.fsum((high - one) ** 2 for one, _, high in known)) / len(known)
    return Rate(value, n, max(0.0, value - down), min(1.0, value + up), unscored, bounds)


def _mean_bounds(rates: Sequence[Rate]) -> Bounds | None:
    """None where nothing is unscored, or a group was not asked at all."""
    ends = [one.bounds or (one.value, one.value) for one in rates]
    known = [(low, high) for low, high in ends if low is not None and high is not None]
    if len(known) < len(rates) or not any(one.unscored for one in rates):
        return None
    return math.fsum(low for low, _ in known) / len(known), math.fsum(high for _, high in known) / len(known)


def wordings(section: ReportSection) -> dict[str, int]:
    """How many questions stand in the benchmark's words, in ours, or in the user's; of the first run."""
    said = (str(row["truth"].get("prompt_is") or "") for row in section.runs[0].replies)
    return {name: count for name, count in Counter(said).items() if name}


def _scores(run: Run, belongs: Callable[[Row], bool]) -> list[Score]:
    return [run.scores[row["id"]] for row in run.replies if belongs(row)]


def _field(row: Row, field: str) -> str:
    return str(row["group"] if field == "group" else row["truth"]["category"])
