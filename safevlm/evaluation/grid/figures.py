"""The grid as a heatmap, from `grid.json` alone.

Darker is worse in every panel, in grey as well; hatched cells have no value and say why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.analysis.figures import NEUTRAL, RAMP, drawing, save
from safevlm.evaluation.grid.table import changed_groups, mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL, LETTER, HEAD = 0.29, 0.066, 1.6
"""Inches: a cell's side, a letter of the names at the left, and what is above and below."""
PANELS = {"asr": "attack success", "harm": "harm", "over_refusal": "over-refusal", "utility": "utility"}
"""Short titles; other measures stand with their own name."""
UNSCORED, PARTLY = "n/s", "°"
NOTE = f"darker is worse; mean over seeds; {UNSCORED}: no reply could be scored; {PARTLY}: some could not; –: not asked"
DARK = 0.55
"""Badness from which on a number is written in white."""
Item = Mapping[str, Any]


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
            told = _percent(value) + PARTLY * any(cell["unscored"] for cell in cells.values())
            axes.text(place, row, told, ha="center", va="center", color=ink, fontsize=6.5)
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


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if 0 < value < 0.0995 else f"{100 * value:.0f}"


def _name(measure: str) -> str:
    return PANELS.get(measure, measure.replace("_", " "))
