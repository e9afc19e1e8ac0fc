"""The grid as a heatmap, and harm against usefulness, from `grid.json` alone.

Darker is worse in every panel, in grey as well; hatched cells have no value and say why. Points are told apart by
number, so that neither colour nor a crowd of twenty markers carries a meaning alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.analysis.figures import COLOURS, MARKERS, NEUTRAL, RAMP, drawing, save
from safevlm.analysis.figures import grid as lines
from safevlm.evaluation.grid.table import changed_groups, mean, time_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL, LETTER, HEAD = 0.29, 0.066, 1.6
"""Inches: a cell's side, a letter of the names at the left, and what is above and below."""
PANELS = {"asr": "attack success", "harm": "harm", "over_refusal": "over-refusal", "utility": "utility"}
"""Short titles; other measures stand with their own name."""
COSTS = {"over_refusal": "harmless requests refused", "utility": "harmless requests not answered right"}
"""What a benign measure costs, as an axis."""
NEAR = 0.45
"""Roots of percents: marks nearer to each other than this share one number plate."""
TICKS = (0, 1, 5, 10, 25, 50, 100)
UNSCORED = "n/s"
NOTE = "darker is worse; mean over seeds; n/s: no reply could be scored; –: not asked"
DARK = 0.55
"""Badness from which on a number is written in white."""
Item = Mapping[str, Any]


def draw(grid: Mapping[str, Any], out: Path) -> list[str]:
    return [*heatmap(grid, out), *tradeoff(grid, out)]


def heatmap(grid: Mapping[str, Any], out: Path) -> list[str]:
    """Rows are defenses; a panel per measure; the mean over seeds in percent in each cell."""
    names = list(grid["rows"])
    panels: dict[str, list[Item]] = {}
    for column in grid["columns"]:
        panels.setdefault(column["measure"], []).append(column)
    widths = [len(columns) for columns in panels.values()]
    size = (HEAD + CELL * len(names), LETTER * max(map(len, names)) + CELL * (sum(widths) + len(widths)))
    with drawing(*size) as figure:
        axes = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
        for place, (one, (measure, columns)) in enumerate(zip(axes, panels.items(), strict=True)):
            _panel(one, grid, names, columns)
            one.set_xlabel(f"{_name(measure)}, % {'↓' if columns[0]['lower_is_better'] else '↑'}", loc="left")
            one.set_yticks(range(len(names)), names if place == 0 else [])
        changed = changed_groups(grid)
        note = NOTE + (f"; numbered columns: changed images of {changed}" if changed else "")
        figure.supxlabel(note, fontsize=6.5, x=0.99, ha="right")
        return save(figure, out, "grid")


def tradeoff(grid: Mapping[str, Any], out: Path) -> list[str]:
    """Attack success against what it costs the harmless; a larger mark is a slower answer. Nothing without both sides.

    Square-root axes: what matters lies near 0, and 0 itself must be on them.
    """
    attack, costs = _attack(grid), _costs(grid)
    if attack is None or not costs:
        return []
    with drawing(max(3.2, 0.17 * len(grid["rows"]) + 0.5), 2.9 * len(costs) + 2.3) as figure:
        axes = figure.subplots(1, len(costs), squeeze=False, sharey=True)[0]
        for one, cost in zip(axes, costs, strict=True):
            _points(one, grid, attack, cost)
            one.set_xlabel(f"{COSTS[cost['measure']]}, %")
        axes[0].set_ylabel(f"attack success, {attack['title']}, %")
        axes[0].set_title("better: left and down; size: time of an answer", loc="left", pad=16)
        _legend(figure, grid, [attack, *costs])
        return save(figure, out, "tradeoff")


def _panel(axes: Axes, grid: Mapping[str, Any], names: Sequence[str], columns: Sequence[Item]) -> None:
    import numpy as np
    from matplotlib.colors import LinearSegmentedColormap

    ramp = LinearSegmentedColormap.from_list("badness", ("#FFFFFF", *RAMP))
    badness = np.full((len(names), len(columns)), np.nan)
    for row, name in enumerate(names):
        for place, column in enumerate(columns):
            cells = grid["rows"][name]["cells"][column["name"]]
            value = mean(cells)
            if value is None:
                _gap(axes, row, place, UNSCORED if cells else "–")
                continue
            badness[row, place] = value if column["lower_is_better"] else 1 - value
            ink = "white" if badness[row, place] > DARK else "black"
            axes.text(place, row, _percent(value), ha="center", va="center", color=ink, fontsize=6.5)
    axes.imshow(badness, cmap=ramp, vmin=0, vmax=1, aspect="equal")
    axes.set_xticks(
        range(len(columns)), [column["title"] for column in columns], rotation=55, ha="left", rotation_mode="anchor"
    )
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([place - 0.5 for place in range(1, len(columns))], minor=True)
    axes.set_yticks([row - 0.5 for row in range(1, len(names))], minor=True)
    axes.grid(which="minor", color="white", linewidth=1.2)
    axes.tick_params(which="minor", length=0)


def _gap(axes: Axes, row: int, place: int, why: str) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((place - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor=NEUTRAL, hatch="////", lw=0))
    axes.text(place, row, why, ha="center", va="center", fontsize=6.5)


def _points(axes: Axes, grid: Mapping[str, Any], attack: Item, cost: Item) -> None:
    lines(axes)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("function", functions=(_root, _square))
    crowds: list[tuple[tuple[float, float], list[str]]] = []
    for place, row in enumerate(grid["rows"].values()):
        x, y = mean(row["cells"][cost["name"]]), mean(row["cells"][attack["name"]])
        if x is None or y is None:
            continue
        x, y = 100 * (x if cost["lower_is_better"] else 1 - x), 100 * y
        axes.scatter(x, y, s=_size(row), **_mark(place), clip_on=False, zorder=3)
        here = _root(x), _root(y)
        near = next((own for there, own in crowds if math.dist(here, there) < NEAR), [])
        if not near:
            crowds.append((here, near))
        near.append(str(place + 1))
    for (x, y), own in crowds:
        axes.annotate(
            " ".join(own),
            (x * x, y * y),
            (4, 4),
            textcoords="offset points",
            fontsize=7,
            rotation=50,
            rotation_mode="anchor",
        )
    for limit in (axes.set_xlim, axes.set_ylim):
        limit(0, 100)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(TICKS)


def _root(value: Any) -> Any:
    import numpy as np

    return np.sqrt(np.clip(value, 0, None))


def _square(value: Any) -> Any:
    return value * value


def _mark(place: int) -> dict[str, Any]:
    """No two of the first 64 rows have both shape and colour in common."""
    turned = place + place // len(COLOURS)
    return {"color": COLOURS[place % len(COLOURS)], "marker": MARKERS[turned % len(MARKERS)], "alpha": 0.8, "lw": 0}


def _size(row: Item) -> float:
    """Square points: the width of a mark is as the time."""
    time = _time(row)
    return 28 * (time or 1.0) ** 2


def _time(row: Item) -> float | None:
    times = [one["value"] for table in row["overhead"].values() if (one := time_of(table, "answer"))]
    return sum(times) / len(times) if times else None


def _legend(figure: Figure, grid: Mapping[str, Any], axes: Sequence[Item]) -> None:
    from matplotlib.lines import Line2D

    names = []
    for place, (name, row) in enumerate(grid["rows"].items()):
        time = _time(row)
        is_drawn = None not in [mean(row["cells"][column["name"]]) for column in axes]
        names.append(f"{place + 1} {name}{f' ({time:.2f} ×)' if time else ''}{'' if is_drawn else ', without a value'}")
    marks = [Line2D([], [], linestyle="", markersize=5, **_mark(place)) for place in range(len(names))]
    figure.legend(marks, names, loc="outside right upper", handletextpad=0.2, fontsize=7, labelspacing=0.35)


def _costs(grid: Mapping[str, Any]) -> list[Item]:
    return [
        column
        for column in grid["columns"]
        if column["side"] == "benign" and column["is_whole"] and column["measure"] in COSTS
    ]


def _attack(grid: Mapping[str, Any]) -> Item | None:
    """Unseen things where the suite has them, else all attacks."""
    own = [column for column in grid["columns"] if column["side"] == "harmful" and not column["perturb"]]
    return next(
        (column for column in own if "unseen" in column["title"]),
        next((column for column in own if column["is_whole"]), None),
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if 0 < value < 0.0995 else f"{100 * value:.0f}"


def _name(measure: str) -> str:
    return PANELS.get(measure, measure.replace("_", " "))
