"""Two judged runs of the same questions, paired by id: what changed, by how much, and whether that could be chance.

Per group and measure: both rates, their difference B - A with a bootstrap interval over the pairs, the discordant pairs
(one run is a hit, the other is not) and McNemar's exact p of them. The trap is a comparison of unlike things: other
questions, another judge, or only the pairs that both runs happened to get scored. The first two are refused; what has
no partner or no score is counted and named, and what it could change at worst stands beside the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safevlm.data.made_by import write_result
from safevlm.evaluation.judges import record
from safevlm.evaluation.judges.provenance import provenance_of
from safevlm.evaluation.metrics.cells import between, number, points
from safevlm.evaluation.metrics.measures import Measure, Unit
from safevlm.evaluation.metrics.rates import Bounds, Rate, measured, worst_case
from safevlm.evaluation.runs.files import Score
from safevlm.evaluation.runs.run import Run, read_run, run_inputs
from safevlm.evaluation.suites.groups import Side
from safevlm.intervals import bootstrap_mean, wilson

SETTINGS = ("model", "defense", "policy", "base", "perturb", "max_new_tokens", "dtype")
"""Facts of a run that are shown where they differ."""
ALL: dict[Side, str] = {"harmful": "all harmful", "benign": "all benign", "scored": "all scored"}


@dataclass(frozen=True)
class Comparison:
    """One measure on one group, over the pairs that both runs have scored."""

    group: str
    measure: str
    a: Rate
    b: Rate
    difference: float | None
    """B - A."""
    low: float | None
    high: float | None
    only_a: list[str] = field(default_factory=list)
    """Ids that are a hit in A and not in B."""
    only_b: list[str] = field(default_factory=list)
    p: float | None = None
    """McNemar's exact two-sided p; None for scores that are no hits."""
    unscored: list[str] = field(default_factory=list)
    """Ids that one of the two judged runs has no value for; the difference and its p leave them out."""
    bounds: Bounds | None = None
    """B - A over all pairs, with what is unscored counted as suits A best, and B best; None: nothing is unscored."""
    unit: Unit = "share"


def compare(a: str | Path, b: str | Path, out: str | Path | None = None, seed: int = 0) -> dict[str, Any]:
    """Compare two runs' folders; written to `out` as JSON when one is given. Neither model nor judge is asked."""
    first, second = read_run("A", Path(a)), read_run("B", Path(b))
    judge = check_alike(first, second)
    ids = [row["id"] for row in first.replies if row["id"] in second.scores]
    table = {
        "suite": first.record["suite"],
        "judge": judge,
        "a": _facts(first),
        "b": _facts(second),
        "differs": [name for name in SETTINGS if first.record.get(name) != second.record.get(name)],
        "pairs": len(ids),
        "only_in_a": sorted(set(first.scores) - set(second.scores)),
        "only_in_b": sorted(set(second.scores) - set(first.scores)),
        "seed": seed,
        "comparisons": [asdict(row) for row in comparisons(first, second, ids, seed)],
    }
    if out is not None:
        write_result(Path(out), table, run_inputs([first, second]))
    return table


def check_alike(a: Run, b: Run) -> str:
    """The judge of both runs. ValueError: other questions, or another judge."""
    suites = [run.record["suite"] for run in (a, b)]
    if suites[0] != suites[1]:
        raise ValueError(f"A is a run of suite {suites[0]!r}, B of {suites[1]!r}; compare two runs of one suite")
    questions = [run.record.get("digests", {}).get("samples") for run in (a, b)]
    if questions[0] != questions[1] or not questions[0]:
        raise ValueError(f"A and B were asked other questions (digests {questions}); ask one of them again")
    judges = [sorted({score.judge for score in run.scores.values()}) for run in (a, b)]
    if judges[0] != judges[1]:
        raise ValueError(f"A is judged by {judges[0]}, B by {judges[1]}; judge one of them again")
    prints = [facts["fingerprint"] for run in (a, b) if (facts := record.read(run.folder))]
    if len(set(prints)) > 1:
        raise ValueError(
            f"A and B are judged by {judges[0]} in two ways (prompt, decoding or model; fingerprints {prints} in "
            f"{record.FILE}); judge one of them again"
        )
    return ", ".join(judges[0])


def comparisons(a: Run, b: Run, ids: Sequence[str], seed: int = 0) -> list[Comparison]:
    """Every measure on every group, and on all groups of a side where it has several."""
    suite, provenance = a.suite, provenance_of(a)
    for name in ids:
        if a.scores[name].group != b.scores[name].group:
            raise ValueError(f"{name}: group {a.scores[name].group!r} in A, {b.scores[name].group!r} in B")
    groups = suite.in_order(a.scores[name].group for name in ids)
    of_group = {group: [name for name in ids if a.scores[name].group == group] for group in groups}
    rows = []
    for side in ALL:
        own = [group for group in groups if suite.side_of(group) == side]
        several = {ALL[side]: [name for group in own for name in of_group[group]]} if len(own) > 1 else {}
        for group, members in ({group: of_group[group] for group in own} | several).items():
            for name, measure in provenance.measures(side).items():
                row = paired(group, name, measure, a.scores, b.scores, members, seed)
                rows.append(replace(row, unit=provenance.unit if name == "score" else "share"))
    return rows


def paired(
    group: str,
    name: str,
    measure: Measure,
    a: Mapping[str, Score],
    b: Mapping[str, Score],
    ids: Sequence[str],
    seed: int = 0,
) -> Comparison:
    """One measure over the pairs; both rates are of the pairs that have both scores, their bounds of all pairs."""
    values = {one: (measure.of(a[one]), measure.of(b[one])) for one in ids}
    unscored = [one for one, pair in values.items() if None in pair]
    known = {one: (float(x), float(y)) for one, (x, y) in values.items() if x is not None and y is not None}
    rate_a, rate_b = (
        replace(
            measured([side[one] for one in known], measure), bounds=_bounds([pair[place] for pair in values.values()])
        )
        for place, side in enumerate((a, b))
    )
    bounds = _difference_bounds(list(values.values())) if unscored else None
    if not known:
        return Comparison(group, name, rate_a, rate_b, None, None, None, unscored=unscored, bounds=bounds)
    differences = [y - x for x, y in known.values()]
    low, high = interval(differences, seed)
    only_a, only_b = [], []
    if measure.is_share:
        only_a = [one for one, (x, y) in known.items() if x > y]
        only_b = [one for one, (x, y) in known.items() if y > x]
    return Comparison(
        group,
        name,
        rate_a,
        rate_b,
        math.fsum(differences) / len(differences),
        low,
        high,
        only_a,
        only_b,
        mcnemar(len(only_a), len(only_b)) if measure.is_share else None,
        unscored,
        bounds,
    )


def _bounds(values: Sequence[float | None]) -> Bounds | None:
    known = [float(value) for value in values if value is not None]
    return worst_case(math.fsum(known), len(known), len(values) - len(known))


def _difference_bounds(pairs: Sequence[tuple[float | None, float | None]]) -> Bounds:
    """The mean of B - A with every unscored value at the end that makes it least, and most."""
    least = math.fsum((0.0 if y is None else y) - (1.0 if x is None else x) for x, y in pairs)
    most = math.fsum((1.0 if y is None else y) - (0.0 if x is None else x) for x, y in pairs)
    return least / len(pairs), most / len(pairs)


def interval(differences: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the mean difference.

    Where no pair differs, a bootstrap would claim [0, 0]; the careful answer is how many pairs may still differ when
    none of n did (Wilson), in either direction.
    """
    if len(set(differences)) > 1:
        return bootstrap_mean(differences, seed)
    reach = wilson(0, len(differences))[1]
    return max(-1.0, differences[0] - reach), min(1.0, differences[0] + reach)


def mcnemar(only_a: int, only_b: int) -> float:
    """McNemar's exact two-sided p: how surprising so uneven a split of the discordant pairs is, were both equal."""
    n, term, tail = only_a + only_b, 1, 0
    for k in range(min(only_a, only_b) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def markdown(table: Mapping[str, Any]) -> str:
    """The comparison for a terminal or a README."""
    lines = [
        f"A: {_told(table['a'])}",
        f"B: {_told(table['b'])}",
        f"suite {table['suite']}, judge {table['judge']}, {table['pairs']} pairs",
        "",
        "| group | measure | A | B | B - A | only A : only B | p |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in table["comparisons"]),
        "",
        "B - A in points with a 95 % interval: bootstrap over pairs; Wilson's where no pair differs.",
        "p: McNemar's, exact, not corrected for the number of rows.",
    ]
    for where in ("a", "b"):
        if missing := table[f"only_in_{where}"]:
            lines.append(f"Only in {where.upper()}, left out ({len(missing)}): {_listed(missing)}")
    if unscored := sorted({one for row in table["comparisons"] for one in row["unscored"]}):
        lines.append(f"Without a score in A or B, left out of difference and p ({len(unscored)}): {_listed(unscored)}")
        lines += [_worst(row) for row in table["comparisons"] if row["unscored"]]
    if "max_new_tokens" in table["differs"]:
        lines.append("Beware: A and B could write answers of different length (max_new_tokens).")
    return "\n".join(lines)


def _line(row: Mapping[str, Any]) -> str:
    start = f"| {row['group']} | {row['measure']} |"
    if row["difference"] is None:
        return f"{start} – | – | – | – | – |"
    unit: Unit = row["unit"]
    rates = f"{number(unit, row['a']['value'])} | {number(unit, row['b']['value'])} (n {row['a']['n']})"
    low, high = (points(unit, row[end]) for end in ("low", "high"))
    change = f"{points(unit, row['difference'])} [{low}, {high}]"
    if row["p"] is None:
        return f"{start} {rates} | {change} | – | – |"
    p = f"{row['p']:.2g}" if row["p"] < 0.1 else f"{row['p']:.2f}"
    return f"{start} {rates} | {change} | {len(row['only_a'])} : {len(row['only_b'])} | {p} |"


def _worst(row: Mapping[str, Any]) -> str:
    """What the pairs left out could change."""
    unit: Unit = row["unit"]
    low, high = (points(unit, end) for end in row["bounds"])
    sides = [
        f"{side.upper()} {between(unit, row[side]['bounds'])}" for side in ("a", "b") if row[side]["bounds"] is not None
    ]
    left = (
        f"{row['group']}, {row['measure']}: {len(row['unscored'])} of {len(row['unscored']) + row['a']['n']} left out"
    )
    return f"{left}; with all of them as 0 or as 1: {', '.join(sides)}; B - A {low} to {high}"


def _listed(names: Sequence[str], shown: int = 8) -> str:
    return ", ".join(names[:shown]) + (", …" if len(names) > shown else "")


def _facts(run: Run) -> dict[str, Any]:
    names = ("model", "defense", "policy", "perturb", "max_new_tokens", "n", "dtype")
    facts = {name: run.record.get(name) for name in names}
    return {"folder": str(run.folder), **facts, "replies": len(run.replies), "finished": run.is_finished}


def _told(facts: Mapping[str, Any]) -> str:
    unfinished = "" if facts["finished"] else f", unfinished ({facts['replies']} of {facts['n']})"
    images = f", images {facts['perturb']}" if facts["perturb"] else ""
    return f"{facts['folder']} ({facts['model']}, {facts['defense']}{images}{unfinished})"
