"""The figures of `analyze calibration`: reliability, what a threshold gives and costs, and promises kept on trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from safevlm.analysis import figures
from safevlm.analysis.thresholds import Promise, Risks, Thresholds
from safevlm.intervals import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STAGES = {
    "before": {"color": "#D55E00", "marker": "s", "linestyle": "--", "markerfacecolor": "white"},
    "after": {"color": "#0072B2", "marker": "o", "linestyle": "-"},
}
AXES = {
    "category": ("category", "confidence", "share right"),
    "level": ("level", "confidence", "share right"),
    "risk": ("risk", "risk, 1 - p(clean)", "share risky"),
}
RULES: dict[str, dict[str, Any]] = {
    "on average": {"color": "#E69F00", "linestyle": ":"},
    "with confidence": {"color": "#0072B2", "linestyle": "--"},
    "with confidence, raised": {"color": "#000000", "linestyle": "-."},
}
RULE_MARKERS = ("o", "s", "^")
ODDS = (-6.0, 6.0)
"""Decimal exponents of the odds that are drawn; what lies beyond stands at the edge."""
COARSE, FINE = ("0.01", "0.5", "0.99"), ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9")
"""Ticks of a small panel or a wide range, and of a narrow range."""
NARROW = 3.0
"""Decimal exponents of a narrow range."""
FEW = 5
"""A bin of fewer images is counted, but its share says nothing and is not drawn."""


def reliability_curves(out: Path, curves: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Confidence against share right, with Wilson's intervals; below, how many images each point stands on."""
    with figures.drawing(3.3) as figure:
        panels = figure.subplots(2, len(curves), height_ratios=(3.2, 1), squeeze=False, sharex=True)
        for column, (name, stages) in enumerate(curves.items()):
            title, across, up = AXES[name]
            above, below = panels[:, column]
            above.plot([0, 1], [0, 1], color="#808080", linewidth=0.6)
            for stage, bins in stages.items():
                _reliability(above, below, bins, stage)
            above.set_title(title, loc="left")
            above.set(ylabel=up, xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            most = max(one.n for bins in stages.values() for one in bins)
            below.set(xlabel=across, yscale="log", ylim=(0.5, 4 * most), ylabel="images" if column == 0 else "")
            for axes in (above, below):
                figures.grid(axes)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper right", ncols=2)
        return figures.save(figure, out, "reliability")


def operating_points(
    out: Path, data: Risks, found: Mapping[str, Thresholds], names: Sequence[str], promise: Promise
) -> list[str]:
    """Share of clean and of risky images that reach a threshold, and where the thresholds stand."""
    per_category = any(isinstance(one, dict) for one in found.values())
    panels = list(enumerate(names)) if per_category else [(None, "")]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    with figures.drawing(2.1 * rows + 0.6 if per_category else 3.2) as figure:
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes, (at, name) in zip(grid.flat, panels, strict=False):
            risk = data.risk if at is None else data.of(at)
            own = {rule: one[name] if isinstance(one, dict) else one for rule, one in found.items()}
            part = promise.target if at is None else promise.split(len(names)).target
            _operating(axes, risk, data.risky, own, part)
            _probabilities(axes, ODDS if per_category else _range(data.risk))
            axes.set_title(name, loc="left")
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("threshold of risk")
        for axes in grid[:, 0]:
            axes.set_ylabel("share that reaches it")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        return figures.save(figure, out, "operating-points")


def trials(out: Path, found: Mapping[str, Any], promise: Promise) -> list[str]:
    """The false-positive rate of every trial on fresh images, sorted, against the target."""
    with figures.drawing(2.8) as figure:
        axes = figure.subplots()
        for at, (rule, row) in enumerate(found["rules"].items()):
            rates = np.sort(row["false_positive_rate"]["all"])
            axes.plot(
                np.arange(1, len(rates) + 1),
                100 * rates,
                label=f"{rule}: {row['kept']} of {len(rates)} kept",
                marker=RULE_MARKERS[at],
                markersize=3.5,
                markevery=max(1, len(rates) // 25),
                linewidth=1,
                **RULES[rule],
            )
        axes.axhline(100 * promise.target, color="#D55E00", linewidth=1.2, label=f"target {100 * promise.target:g} %")
        axes.set(xlabel="calibration, sorted by its rate", ylabel="false positives on fresh images, %")
        axes.set_ylim(bottom=-0.03 * axes.get_ylim()[1])
        figures.grid(axes, "y")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return figures.save(figure, out, "trials")


def _reliability(above: Axes, below: Axes, bins: Sequence[Any], stage: str) -> None:
    look: dict[str, Any] = STAGES[stage]
    shown = [one for one in bins if one.n >= FEW]
    right = np.array([one.right for one in shown])
    whiskers = [right - [one.low for one in shown], [one.high for one in shown] - right]
    above.errorbar(
        [one.confidence for one in shown],
        right,
        yerr=whiskers,
        label=f"{stage} temperature",
        markersize=4,
        linewidth=1.2,
        elinewidth=0.8,
        capsize=2,
        **look,
    )
    below.plot([one.confidence for one in bins], [one.n for one in bins], markersize=4, linewidth=0.8, **look)


def _operating(axes: Axes, risk: Floats, risky: NDArray[np.bool_], found: Mapping[str, float], target: float) -> None:
    for label, rows, look in (
        ("risky images", risky, {"color": "#D55E00", "linestyle": "-"}),
        ("clean images", ~risky, {"color": "#009E73", "linestyle": (0, (5, 1))}),
    ):
        scores = np.sort(_log_odds(risk[rows]))
        reach = np.arange(len(scores), 0, -1) / max(1, len(scores))
        across = np.concatenate([[ODDS[0]], scores, [ODDS[1]]])
        axes.step(across, np.concatenate([[1.0], reach, [0.0]]), where="pre", label=label, linewidth=1.4, **look)
    axes.axhline(target, color="#808080", linewidth=0.8, label=f"target {target:.3g}")
    for rule, threshold in found.items():
        axes.axvline(float(_log_odds(np.array([threshold]))[0]), label=rule, linewidth=1.1, **RULES[rule])
    axes.set_yscale("symlog", linthresh=0.01, linscale=0.5)
    axes.set_yticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
    axes.set_ylim(-0.002, 1.15)
    figures.grid(axes)


def _log_odds(risk: Floats) -> Floats:
    """Decimal logarithm of the odds, within what is drawn."""
    with np.errstate(divide="ignore"):
        return np.clip(np.log10(risk) - np.log10(np.maximum(1 - risk, 0)), *ODDS)


def _range(risk: Floats) -> tuple[float, float]:
    """Where nearly all images lie, with some room."""
    low, high = np.quantile(_log_odds(risk), (0.001, 0.999))
    return max(ODDS[0], float(low) - 0.3), min(ODDS[1], float(high) + 0.3)


def _probabilities(axes: Axes, limits: tuple[float, float]) -> None:
    """An axis of log odds that reads as probabilities."""
    words: tuple[str, ...] = FINE if limits[1] - limits[0] < NARROW else ("0.0001", *COARSE, "0.9999")
    words = COARSE if limits == ODDS else words
    places = [float(_log_odds(np.array([float(word)]))[0]) for word in words]
    axes.set_xticks(places, words)
    axes.set_xlim(*limits)
