"""`safevlm analyze certified`: which share of images a smoothed detector gets right, provably, within which radius.

The certified accuracy of Cohen et al. (arXiv 1902.02918, section 4): the share of images on which "risky or not" is
right and proven to stay so under every change of the pixels of smaller l2 norm than the radius. An abstention is a
refusal: it helps against a risky image and harms a clean one, and nothing is proven of it in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safevlm.analysis import figures, summary
from safevlm.analysis.judged_sets import JudgedSetsOptions, guarded_sets
from safevlm.analysis.verdicts import DetectorVerdicts
from safevlm.defenses.smoothed import Smoothed, radius_of
from safevlm.intervals import Floats, Interval, share
from safevlm.usage import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT = "l2 norm of a change of the pixels that the tower reads, each 0 to 1"
POINTS = 41
"""Radii of a curve, from 0 to the largest that so many copies can prove."""
SHOWN = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Radii of the table, in shares of the largest."""


@dataclass(frozen=True)
class CertifiedOptions(JudgedSetsOptions):
    defense: str = "safety-head:smoothed"


def run(options: CertifiedOptions) -> dict[str, Any]:
    """Verdicts with radii → curves, a figure, a table, `summary.json`; the numbers.

    UsageError: a defense that proves no radius.
    """
    given = guarded_sets("certified", options)
    loaded, sets, guard = given.loaded, given.sets, given.guard
    if not isinstance(guard, Smoothed):
        raise UsageError(f"--defense {options.defense}: it proves no radius; name safety-head:smoothed")
    settings = guard.detector.options
    shown = given.judged(options.batch_size)
    largest = radius_of(settings.n, settings.n, settings.sigma, settings.alpha) or 0.0
    radii = np.linspace(0, largest, POINTS)
    numbers = {one.name: certified(one, radii) for one in shown}
    result = {
        "detector": guard.name,
        "options": asdict(settings),
        "unit": UNIT,
        "radii": radii.tolist(),
        "sets": numbers,
        "files": draw(options.out, radii, numbers),
    }
    summary.write("certified", options.out, loaded, sets, options.seed, result)
    _print(radii, numbers)
    return result


def certified(judged: DetectorVerdicts, radii: Floats) -> dict[str, Any]:
    """Of the risky and of the clean images of a set: shares right, wrong and abstained, and the curve."""
    found = np.array([-1.0 if one.radius is None else one.radius for one in judged.verdicts])
    rows = {"risky": judged.risky, "clean": ~judged.risky}
    return {name: _part(found[own], (judged.flagged == judged.risky)[own], radii) for name, own in rows.items()}


def _part(found: Floats, right: NDArray[np.bool_], radii: Floats) -> dict[str, Any]:
    """`found`: radii, -1 of an abstention; `right`: the answer, whatever the radius."""
    return {
        "n": len(found),
        "right": share((found >= 0) & right).to_dict(),
        "wrong": share((found >= 0) & ~right).to_dict(),
        "abstained": share(found < 0).to_dict(),
        "median_radius": float(np.median(found[(found >= 0) & right])) if ((found >= 0) & right).any() else None,
        "curve": [share((found >= radius) & (found >= 0) & right).to_dict() for radius in radii],
    }


def draw(out: Path, radii: Floats, numbers: Mapping[str, Any]) -> list[str]:
    """Certified share against the radius, risky images beside clean ones, a line per set."""
    with figures.drawing(3.0) as figure:
        for at, (axes, part) in enumerate(zip(figure.subplots(1, 2, sharey=True), ("risky", "clean"), strict=True)):
            for place, (name, one) in enumerate(numbers.items()):
                if not one[part]["n"]:
                    continue
                shares = np.array([point["value"] for point in one[part]["curve"]])
                style: dict[str, Any] = {
                    "color": figures.COLOURS[place % len(figures.COLOURS)],
                    "linestyle": figures.LINES[place % len(figures.LINES)],
                }
                low, high = (np.array([point[end] for point in one[part]["curve"]]) for end in ("low", "high"))
                axes.plot(radii, 100 * shares, label=f"{name}, n {one[part]['n']}", linewidth=1.3, **style)
                axes.fill_between(radii, 100 * low, 100 * high, color=style["color"], alpha=0.15, linewidth=0)
            axes.set_title(f"{part} images", loc="left")
            axes.set(xlabel="l2 radius", ylim=(-2, 102), ylabel="certified share, %" if at == 0 else "")
            figures.grid(axes)
            if axes.get_legend_handles_labels()[0]:
                axes.legend(loc="lower left")
        return figures.save(figure, out, "certified")


def _print(radii: Floats, numbers: Mapping[str, Any]) -> None:
    shown = [round(part * (len(radii) - 1)) for part in SHOWN]
    head = ["set", "images", "n", "wrong", "abstained", *(f"r >= {radii[at]:.3f}" for at in shown)]
    rows = []
    for name, one in numbers.items():
        for part in ("risky", "clean"):
            cells = [one[part]["wrong"], one[part]["abstained"], *(one[part]["curve"][at] for at in shown)]
            rows.append([name, part, str(one[part]["n"]), *(str(Interval(**cell)) for cell in cells)])
    summary.print_table(head, rows)
