"""`grid.md`: one line per row, for a README; made of `grid.json` alone.

What could not be scored, was not asked or was not timed says so: an empty cell would read as 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from safevlm.evaluation.metrics.measures import MEASURES

NOT_ASKED, NOT_TIMED = "not asked", "not timed"
MOST_ATTACKS = 5
"""Groups of harmful requests with a column each; of more, all together."""
LEVEL = 0.05
"""Of p after Holm's correction, below which a cell is starred."""
SHORT = {"asr": "ASR", "utility": "utility"}
"""Measures whose titles are too long for a column; the rest stand as `safevlm.evaluation.metrics.measures` has them."""
SEEDS = (
    "a / b: one number per seed of training, which varies the new weights, the order of the records and what is drawn "
    "of them; the questions are the same for all."
)
UNSCORED = (
    "Behind `unscored`: the value at worst, with all of it counted as 0, and as 1; paired tests leave out questions "
    "that either row has no score for (`grid.json` says how many, and what they could change)."
)
TIMES = {"first_token": "first token ×", "answer": "answer ×"}

Cells = Mapping[str, Mapping[str, Any]]
"""Of one column, by seed."""


def markdown(grid: Mapping[str, Any]) -> str:
    columns = [*_rates(grid), *_worst(grid), *_costs()]
    lines = [
        "| | " + " | ".join(title for title, _ in columns) + " |",
        "|---|" + "---|" * len(columns),
        *(
            "| " + " | ".join([_escaped(name), *(cell(row) for _, cell in columns)]) + " |"
            for name, row in grid["rows"].items()
        ),
        "",
        _legend(grid),
        *(f"Not run: {one['row']} ({one['seed']}), {one['status']}: {one['why']}." for one in grid["not_run"]),
        *(f"Beware: {problem}." for problem in grid["problems"]),
    ]
    return "\n".join(lines) + "\n"


def told(cells: Cells) -> str:
    """`0.3 % [0.1, 1.9]*` of one seed, `0.3 / 0.7 %` of several; then what is unscored, with its worst cases."""
    if not cells:
        return NOT_ASKED
    if any(cell["value"] is None for cell in cells.values()):
        return " / ".join(_number(cell) for cell in cells.values())
    numbers = " / ".join(_number(cell) for cell in cells.values()) + " %"
    only = next(iter(cells.values())) if len(cells) == 1 else None
    interval = f" [{100 * only['low']:.1f}, {100 * only['high']:.1f}]" if only else ""
    beside = f", {_unscored(cells)}" if any(cell["unscored"] for cell in cells.values()) else ""
    return numbers + interval + "*" * _differs(cells) + beside


def changed_groups(grid: Mapping[str, Any]) -> str:
    """What was asked with changed images; empty where nothing was."""
    names = dict.fromkeys(group for column in grid["columns"] if column["perturb"] for group in column["groups"])
    return ", ".join(name.replace("_", " ") for name in names)


def mean(cells: Cells, bound: int | None = None) -> float | None:
    """Over the seeds; None where one has no value, or none was asked.

    `bound`: 0 or 1, with everything unscored counted as that.
    """
    values = [cell["value"] for cell in cells.values()]
    if not values or None in values:
        return None
    if bound is not None:
        values = [(cell.get("bounds") or (cell["value"],) * 2)[bound] for cell in cells.values()]
    return math.fsum(values) / len(values)


Column = tuple[str, Callable[[Mapping[str, Any]], str]]


def _rates(grid: Mapping[str, Any]) -> list[Column]:
    """Attacks one by one, everything else as a whole."""
    clean = [column for column in grid["columns"] if not column["perturb"]]
    attacks = [column for column in clean if column["side"] == "harmful" and not column["is_whole"]]
    if not 0 < len(attacks) <= MOST_ATTACKS:
        attacks = [column for column in clean if column["side"] == "harmful" and column["is_whole"]]
    rest = [column for column in clean if column["side"] != "harmful" and column["is_whole"]]
    return [
        *((_title(column["measure"], column["title"]), _rate(column["name"])) for column in attacks),
        *((_title(column["measure"], column["title"]), _rate(column["name"])) for column in rest),
    ]


def _rate(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: told(row["cells"][name])


def _worst(grid: Mapping[str, Any]) -> list[Column]:
    """Of changed images, the change that is worst for the row, by name."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for column in grid["columns"]:
        if column["perturb"]:
            found.setdefault(column["measure"], []).append(column)
    return [(_title(measure, "worst change"), _worst_of(own)) for measure, own in found.items()]


def _worst_of(columns: Sequence[Mapping[str, Any]]) -> Callable[[Mapping[str, Any]], str]:
    sign, bound = (1, 1) if columns[0]["lower_is_better"] else (-1, 0)

    def cell(row: Mapping[str, Any]) -> str:
        # by what it may be at worst: a change that makes answers unreadable must not look like a mild one
        found = {one["name"]: mean(row["cells"][one["name"]], bound) for one in columns}
        known = {name: value for name, value in found.items() if value is not None}
        if not known:
            return next((told(cells) for one in columns if (cells := row["cells"][one["name"]])), NOT_ASKED)
        worst = max(known, key=lambda name: sign * known[name])
        lacking = len(columns) - len(known)
        title = next(one["title"] for one in columns if one["name"] == worst)
        return f"{told(row['cells'][worst])} ({title}{f'; {lacking} without a value' if lacking else ''})"

    return cell


def _costs() -> list[Column]:
    times: list[Column] = [(title, _time(name)) for name, title in TIMES.items()]
    return [*times, ("extra passes: tower, LLM", _passes)]


def _time(name: str) -> Callable[[Mapping[str, Any]], str]:
    def cell(row: Mapping[str, Any]) -> str:
        found = [one for table in row["overhead"].values() if (one := time_of(table, name))]
        if not found:
            return NOT_TIMED
        numbers = " / ".join(f"{one['value']:.2f}" for one in found)
        return numbers + (f" [{found[0]['low']:.2f}, {found[0]['high']:.2f}]" if len(found) == 1 else "")

    return cell


def time_of(table: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """A time of `overhead.json`; files of an older layout know the whole answer only."""
    return table["times"].get(name) if "times" in table else table if name == "answer" else None


def _passes(row: Mapping[str, Any]) -> str:
    found = [extra for table in row["overhead"].values() if (extra := table.get("passes", {}).get("extra"))]
    return " / ".join(f"{extra['tower']:+.2f}, {extra['llm']:+.2f}" for extra in found) or NOT_TIMED


def _number(cell: Mapping[str, Any]) -> str:
    return f"– ({_unscored({'': cell})})" if cell["value"] is None else f"{100 * cell['value']:.1f}"


def _unscored(cells: Cells) -> str:
    """`122 unscored: 32.7 to 73.3 %`; of several seeds all together, and the worst cases of each."""
    told = f"{sum(cell['unscored'] for cell in cells.values())} unscored"
    bounds = [cell.get("bounds") or (cell["value"], cell["value"]) for cell in cells.values() if _has_bounds(cell)]
    ends = " / ".join(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in bounds)
    return f"{told}: {ends} %" if len(bounds) == len(cells) else told


def _has_bounds(cell: Mapping[str, Any]) -> bool:
    """Files of before have none."""
    return cell.get("bounds") is not None or (not cell["unscored"] and cell["value"] is not None)


def _differs(cells: Cells) -> bool:
    """From `none`, with every seed."""
    ps = [(cell.get("against_none") or {}).get("p_holm") for cell in cells.values()]
    return all(p is not None and p < LEVEL for p in ps)


def _title(measure: str, what: str) -> str:
    name, arrow = MEASURES[measure].title.rsplit(" ", 1)
    return f"{SHORT.get(measure, name.removesuffix(', mean'))}, {what} {arrow}"


def _legend(grid: Mapping[str, Any]) -> str:
    several = any(len(row["seeds"]) > 1 for row in grid["rows"].values())
    ns = {
        column["title"]: sorted(
            {cell["n"] for row in grid["rows"].values() for cell in row["cells"][column["name"]].values()}
        )
        for column in grid["columns"]
        if column["is_whole"]
    }
    told_ns = ", ".join(f"{title} {'-'.join(map(str, dict.fromkeys((n[0], n[-1]))))}" for title, n in ns.items() if n)
    return " ".join(
        [
            f"Suite {grid['suite']}, judge {grid['judge']}; n: {told_ns}.",
            "Brackets: 95 % intervals (Wilson; times: bootstrap of the median of paired ratios on benign requests).",
            SEEDS if several else "",
            UNSCORED if _any_unscored(grid) else "",
            f"*: differs from `none` (McNemar's exact p after Holm over {grid['tests'].get('against_none', 0)} cells"
            f" < {LEVEL}{', with every seed' if several else ''}).",
            f"Worst change: of several, on images of {changed}; to be read against the bare model's row."
            if (changed := changed_groups(grid))
            else "",
            f"Best row: {grid['best']} ({grid['best_is']})." if grid["best"] else "",
        ]
    ).replace("  ", " ")


def _any_unscored(grid: Mapping[str, Any]) -> bool:
    return any(
        cell["unscored"] for row in grid["rows"].values() for cells in row["cells"].values() for cell in cells.values()
    )


def _escaped(name: str) -> str:
    return name.replace("|", "\\|")
