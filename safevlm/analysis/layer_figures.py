"""The figure of `analyze layers`: the angular gap by layer, and below it each input's own cosines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safevlm.analysis import figures
from safevlm.analysis.layer_gaps import Curve, InputCurve
from safevlm.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_PER_ROW = 4
COSINES = (
    ("nn", "normal, normal", {"color": "#000000", "linestyle": "-"}),
    ("nm", "normal, malicious", {"color": "#D55E00", "linestyle": "--"}),
    ("normal", "normal without and with the defense", {"color": "#56B4E9", "linestyle": "-."}),
    ("malicious", "malicious without and with the defense", {"color": "#CC79A7", "linestyle": ":"}),
)
"""What each small panel may show."""


def draw(out: Path, inputs: Sequence[InputCurve], safety: Sequence[int]) -> list[str]:
    """One line per input above; a small panel per input below. Filled markers: above the null."""
    drawn = [(one, one.curve) for one in inputs if one.curve is not None]
    rows = -(-len(drawn) // MOST_PER_ROW)
    columns = -(-len(drawn) // rows)
    with figures.drawing(3.3 + 1.75 * rows) as figure:
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3.0, 1.75 * rows + 0.3)).ravel()
        _gaps(above.subplots(), drawn, safety)
        panels = below.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for axes, (one, found) in zip(panels, drawn, strict=False):
            _cosines(axes, one, found)
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        _legend(below, panels[: len(drawn)])
        return figures.save(figure, out, "layers")


def _gaps(axes: Axes, inputs: Sequence[tuple[InputCurve, Curve]], safety: Sequence[int]) -> None:
    for layer in safety:
        axes.axvspan(layer - 0.5, layer + 0.5, color="#F2F2F2", linewidth=0, zorder=0)
    for at, (one, found) in enumerate(inputs):
        colour, line = figures.COLOURS[at % len(figures.COLOURS)], figures.LINES[at % len(figures.LINES)]
        layers, values = _line(axes, found.gap, {"color": colour, "linestyle": line, "linewidth": 1.4})
        fills = [colour if layer in found.above else "white" for layer in layers]
        marker = figures.MARKERS[at % len(figures.MARKERS)]
        axes.scatter(layers, values, c=fills, linewidths=0.9, marker=marker, edgecolor=colour, zorder=3, s=22)
        axes.plot(
            [],
            [],
            color=colour,
            linestyle=line,
            linewidth=1.4,
            markersize=4.5,
            marker=marker,
            label=f"{_short(one.name)}, n {found.normal} + {found.malicious}",
        )
    axes.set(xlabel="layer", ylabel="angular gap, degrees")
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])  # whole markers at 0
    axes.set_title("bands: 95 % intervals; filled: above the null; grey: the text's safety layers", loc="left")
    _layers(axes, len(inputs[0][1].gap), ticks=16)
    axes.figure.legend(loc="outside lower center", ncols=2, handlelength=3)


def _cosines(axes: Axes, one: InputCurve, curve: Curve) -> None:
    found = {"nn": curve.nn, "nm": curve.nm, **(one.shift or {})}
    for key, label, look in COSINES:
        if key in found:
            _line(axes, found[key], {**look, "linewidth": 1.2, "label": label})
    axes.set_title(re.sub("([+=])", r"\1\n", _short(one.name)), loc="left")
    axes.tick_params(labelbottom=True, labelleft=True)
    _layers(axes, len(curve.nn), ticks=4)


def _line(axes: Axes, estimates: Sequence[Interval], look: dict[str, Any]) -> tuple[Any, Any]:
    """Values with their interval as a band."""
    layers = np.arange(1, len(estimates) + 1)
    values = np.array([one.value for one in estimates])
    axes.plot(layers, values, **look)
    ends = np.array([(one.low, one.high) for one in estimates], dtype=float)
    axes.fill_between(layers, ends[:, 0], ends[:, 1], color=look["color"], alpha=0.18, linewidth=0)
    return layers, values


def _short(name: str) -> str:
    """Without the folders of a defense's file."""
    return re.sub(r"=[^+]*/", "=", name)


def _layers(axes: Axes, count: int, ticks: int) -> None:
    axes.set_xlim(0.5, count + 0.5)
    axes.set_xticks(range(1, count + 1, max(1, count // ticks)))
    figures.grid(axes)


def _legend(figure: Any, panels: Sequence[Axes]) -> None:
    """One for all small panels: whatever any of them shows."""
    for axes in panels:
        axes.set_xlabel("layer")
    panels[0].set_ylabel("mean cosine")
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, handlelength=3)
