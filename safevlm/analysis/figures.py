"""One style for every figure: legible in print at 8 points, told apart without colour, the same bytes every time.

Colours are Okabe and Ito's for categories (told apart by every kind of colour vision) and a ramp of lightness for
levels; marker, hatch and line style repeat what the colour says. Nothing here touches matplotlib's global state: no
pyplot, settings within `drawing` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from safevlm.taxonomy import CLEAN, SAFE, Taxonomy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.0
"""Inches: the text width of a two-column page."""
DPI = 200
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
NEUTRAL = "#B0B0B0"
RAMP = ("#F2C14E", "#C8553D", "#3D1A4F")
"""Levels above `safe`: darker is graver, in grey as well."""
GRID = "#D8D8D8"
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "hatch.linewidth": 0.6,
    "svg.hashsalt": "safevlm",
    "figure.facecolor": "white",
}


@contextmanager
def drawing(height: float, width: float = WIDTH) -> Iterator[Figure]:
    """An empty figure, in inches; draw and save it within."""
    try:
        import matplotlib
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ImportError("figures need matplotlib: pip install -e '.[analysis]'") from error
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # its type names every key there is
        yield Canvas(figsize=(width, height), layout="constrained")


def save(figure: Figure, out: Path, name: str) -> list[str]:
    """PNG and SVG without time or program in them; the names of the files."""
    out.mkdir(parents=True, exist_ok=True)
    figure.savefig(out / f"{name}.png", dpi=DPI, metadata={"Software": None})
    figure.savefig(out / f"{name}.svg", metadata={"Date": None, "Creator": None})
    return [f"{name}.png", f"{name}.svg"]


def category_styles(taxonomy: Taxonomy) -> dict[str, dict[str, Any]]:
    """Colour and marker by category; clean is grey."""
    risky = [name for name in taxonomy.category_names if name != CLEAN]
    styles = {name: _style(COLOURS[index % len(COLOURS)], index) for index, name in enumerate(risky)}
    return {name: styles.get(name, {"color": NEUTRAL, "marker": "."}) for name in taxonomy.category_names}


def level_styles(taxonomy: Taxonomy) -> dict[str, dict[str, Any]]:
    """Colour and marker by level, darker with gravity; safe is grey."""
    grave = [name for name in taxonomy.level_names if name != SAFE]
    last = max(1, len(grave) - 1)
    styles = {name: _style(RAMP[round(at * (len(RAMP) - 1) / last)], at) for at, name in enumerate(grave)}
    return {name: styles.get(name, {"color": NEUTRAL, "marker": "."}) for name in taxonomy.level_names}


def confusion(axes: Axes, counts: Any, names: Sequence[str], title: str) -> None:
    """Counts in a grid, shaded by the share of their row: rows are the truth."""
    totals = counts.sum(1, keepdims=True)
    shares = counts / totals.clip(min=1)
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1)
    for row in range(len(names)):
        for column in range(len(names)):
            if counts[row, column]:
                ink = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=ink)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(title, loc="left")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(True)


def grid(axes: Axes, axis: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(axis=axis, color=GRID, linewidth=0.6)


def _style(colour: str, index: int) -> dict[str, Any]:
    return {"color": colour, "marker": MARKERS[index % len(MARKERS)]}
