"""The figures of `analyze head`: accuracy per data set, confusion matrices, ROC and precision-recall curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safevlm.analysis import figures
from safevlm.analysis.curves import Curves
from safevlm.analysis.verdicts import DetectorVerdicts, confusion
from safevlm.taxonomy import Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BARS = (
    ("category", "accuracy", "category"),
    ("level", "accuracy", "level"),
    ("level", "from_category", "level, from the true category alone"),
)
"""Read-out, number, and its name in the legend."""
BAR_COLOURS = ("#0072B2", "#E69F00", "#E8E8E8")
SETS_PER_ROW = 7
"""More bars than that do not fit beside each other at 8 points."""
NAME_LENGTH = 14


def performance(out: Path, numbers: Mapping[str, Any]) -> list[str]:
    """Grouped bars: accuracy of category and level per data set, with intervals, and what the category alone gives."""
    names = list(numbers)
    rows = [names[start : start + SETS_PER_ROW] for start in range(0, len(names), SETS_PER_ROW)]
    with figures.drawing(2.3 * len(rows) + 0.4) as figure:
        panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
        for axes, row in zip(panels, rows, strict=True):
            _bars(axes, {name: numbers[name] for name in row})
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(BARS))
        return figures.save(figure, out, "performance")


def confusions(out: Path, sets: Sequence[DetectorVerdicts], taxonomy: Taxonomy) -> list[str]:
    """A figure per set: categories and levels, counts shaded by row."""
    files = []
    for judged in sets:
        with figures.drawing(3.5) as figure:
            left, right = figure.subplots(1, 2, width_ratios=(7, 5))
            for axes, read_out, names in (
                (left, "category", taxonomy.category_names),
                (right, "level", taxonomy.level_names),
            ):
                figures.confusion(axes, confusion(judged, read_out, names), names, f"{judged.name}: {read_out}")
            files += figures.save(figure, out, f"confusion-{file_name(judged.name)}")
    return files


def risk_curves(out: Path, found: Mapping[str, Curves | None]) -> list[str]:
    """Risky against clean images, a line per set."""
    lines = {name: one for name, one in found.items() if one is not None}
    colours = [figures.COLOURS[at % len(figures.COLOURS)] for at in range(len(lines))]
    return _curves(out, "curves-risk", lines, colours) if lines else []


def category_curves(out: Path, found: Mapping[str, Curves], taxonomy: Taxonomy) -> list[str]:
    """Each category against all the others, a line per category."""
    styles = figures.category_styles(taxonomy)
    return _curves(out, "curves-category", found, [styles[name]["color"] for name in found]) if found else []


def file_name(name: str) -> str:
    """A set's name as part of a file's."""
    return re.sub(r"[^\w.-]+", "_", name)


def _bars(axes: Axes, numbers: Mapping[str, Any]) -> None:
    places, width = np.arange(len(numbers)), 0.8 / len(BARS)
    for at, (read_out, key, label) in enumerate(BARS):
        found = [one[read_out][key] for one in numbers.values()]
        heights = np.array([100 * (one["value"] or 0.0) for one in found])
        whiskers = np.array([_whisker(one) for one in found]).T
        axes.bar(
            places + (at - 1) * width,
            heights,
            width,
            label=label,
            color=BAR_COLOURS[at],
            hatch=figures.HATCHES[at],
            edgecolor="black",
            linewidth=0.6,
            yerr=whiskers,
            error_kw={"elinewidth": 0.8, "capsize": 2},
        )
    axes.set_xticks(places, [f"{_wrapped(name)}\nn {one['n']}" for name, one in numbers.items()])
    axes.set_xlim(-0.6, max(len(numbers), 3) - 0.4)
    axes.set_ylim(0, 105)
    axes.set_ylabel("right, %")
    figures.grid(axes, "y")


def _whisker(one: Mapping[str, Any]) -> tuple[float, float]:
    if one["value"] is None:
        return 0.0, 0.0
    return 100 * (one["value"] - one["low"]), 100 * (one["high"] - one["value"])


def _wrapped(name: str) -> str:
    """A long name in lines, broken at its own seams."""
    lines = [""]
    for part in re.findall(r"[^_/\-. ]*[_/\-. ]?", name):
        if lines[-1] and len(lines[-1]) + len(part) > NAME_LENGTH:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _curves(out: Path, name: str, lines: Mapping[str, Curves], colours: Sequence[str]) -> list[str]:
    rows = -(-len(lines) // 2)
    with figures.drawing(3.1 + 0.17 * rows) as figure:
        roc, recall = figure.subplots(1, 2)
        for at, (label, one) in enumerate(lines.items()):
            look = {"color": colours[at], "linestyle": figures.LINES[at % len(figures.LINES)], "linewidth": 1.4}
            text = f"{label}: AUROC {one.auroc.value:.3f}, AP {one.ap.value:.3f}"
            roc.step(one.false_positives, one.recall, where="post", label=text, **look)
            recall.step(one.recall, one.precision, where="pre", **look)
        roc.set(xlabel="false-positive rate", ylabel="recall", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        recall.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        roc.plot([0, 1], [0, 1], color="#808080", linewidth=0.6, zorder=0)
        for axes in (roc, recall):
            figures.grid(axes)
            axes.set_box_aspect(0.85)
        handles, labels = roc.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, handlelength=3)
        return figures.save(figure, out, name)
