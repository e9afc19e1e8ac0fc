"""Robustness as pictures: success against the size of the change, and attacked images beside their originals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from safevlm.analysis.figures import COLOURS, LINES, MARKERS, drawing, save
from safevlm.data.images import open_image
from safevlm.evaluation.attacks.table import size_of
from safevlm.evaluation.runs.run import Run

SHOWN = 6
"""Requests in a gallery."""
SIDE = 1.05
"""Inches of an image in it."""
Outcomes = Mapping[str, Sequence[Mapping[str, Any]]]
"""Target → the outcomes of its attacks, as `robustness.json` has them."""


def curves(targets: Outcomes, out: Path) -> list[str]:
    """Harmful help, and requests in which a detector saw a risk, by the size of the change in steps of 255."""
    with drawing(2.6) as figure:
        for axes, key, title in zip(
            figure.subplots(1, 2), ("asr", "flagged"), ("harmful help, %", "flagged, %"), strict=True
        ):
            for place, (name, found) in enumerate(targets.items()):
                points = _points(found, key)
                if not points:
                    continue
                sizes = [_place(size) for size, _ in points]
                style = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place % len(LINES)]}
                values = [100 * rate["value"] for _, rate in points]
                axes.plot(sizes, values, marker=MARKERS[place % len(MARKERS)], markersize=4, label=name, **style)
                lows, highs = ([100 * rate[end] for _, rate in points] for end in ("low", "high"))
                axes.fill_between(sizes, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
            known = sorted({size for found in targets.values() for size, _ in _points(found, key)})
            axes.set_xticks([_place(size) for size in known], [f"{size:g}" for size in known])
            axes.set_xlabel("largest change of a value, of 255 (strongest attack)")
            axes.set_title(title, loc="left")
            axes.set_ylim(-3, 103)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return save(figure, out, "curves")


def gallery(runs: Sequence[Run], out: Path) -> list[str]:
    """Attacked images below their originals, of requests that got harmful help first; a row per attack."""
    attacked = [run for run in runs if run.replies and run.replies[0]["request"]["images"]]
    clean = attacked[0]
    ids = [row["id"] for row in clean.replies][:SHOWN] if len(attacked) < 2 else _telling(attacked[1:])
    with drawing(0.3 + (SIDE + 0.2) * len(attacked), 0.9 + SIDE * len(ids)) as figure:
        grid = figure.subplots(len(attacked), len(ids), squeeze=False)
        for axes_row, run in zip(grid, attacked, strict=True):
            rows = {row["id"]: row for row in run.replies}
            for axes, id in zip(axes_row, ids, strict=True):
                axes.set_xticks([])
                axes.set_yticks([])
                if id in rows:
                    axes.imshow(open_image(run.folder / rows[id]["request"]["images"][0]))
                    axes.set_xlabel(run.scores[id].label, fontsize=6.5)
            axes_row[0].set_ylabel(str(run.record.get("attack") or "clean"), fontsize=7)
        return save(figure, out, "gallery")


def _telling(runs: Sequence[Run]) -> list[str]:
    """Requests that most attacks got through with, the groups in turn."""
    counts: dict[str, int] = {}
    for run in runs:
        for id, score in run.scores.items():
            counts[id] = counts.get(id, 0) + int(bool(score.value))
    groups = {row["id"]: row["group"] for row in runs[0].replies}
    ranked = sorted(counts, key=lambda id: (-counts[id], id))
    seen: Counter[str] = Counter()
    places = {}
    for id in ranked:
        places[id] = seen[groups[id]]
        seen[groups[id]] += 1
    return sorted(ranked, key=lambda id: (places[id], -counts[id], id))[:SHOWN]


def _points(found: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, Mapping[str, Any]]]:
    """(size, rate) of the strongest attack of every size, the clean requests at 0."""
    best: dict[float, Mapping[str, Any]] = {}
    for one in found:
        size = 0.0 if one["attack"] == "clean" else size_of(one["attack"])
        if size is None or one[key]["value"] is None:
            continue
        sign = 1 if key == "asr" else -1
        if size not in best or sign * one[key]["value"] > sign * best[size]["value"]:
            best[size] = one[key]
    return sorted(best.items())


def _place(size: float) -> float:
    """On the axis: doubling a size is one step."""
    return log2(1 + size)
