"""What finding near-duplicates among an audit's fingerprints costs: CPU seconds of one process, paired.

    equal    numpy.unique of the 64 bits: images that have the same ones, and no others       the peer
    near     exact and near duplicates, thumbnails compared

Fingerprints are random but for one cluster, `CLUSTER` of all: images alike, each a bit or none from the first.
Comparing pairs is quadratic in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from safevlm.analysis.audit.duplicates import BITS, Fingerprints, group
from safevlm.analysis.audit.fingerprint import THUMB_BYTES
from safevlm.evaluation.speed.cpu_rounds import Work, in_rounds
from safevlm.evaluation.speed.gpu_check import timing

EQUAL, NEAR = "equal", "near"
CLUSTER = 0.02
SHADE = (98, 104)
"""Of the cluster's thumbnails: near enough to each other."""


def measure(images: int, rounds: int) -> dict[str, Any]:
    """ValueError: the cluster was not found."""
    with TemporaryDirectory() as made:
        prints, alike = _synthesised(images, Path(made))
        groups = group(prints).near
        if alike.size and not (groups[alike] == alike[0]).all():
            raise ValueError("the images that are alike are not one group; nothing is written")
        ways: dict[str, Work] = {
            EQUAL: lambda: np.unique(prints.bits, return_inverse=True),
            NEAR: lambda: group(prints),
        }
        seconds = in_rounds(ways, rounds, "near-duplicates")
    return {"images": images, "alike": len(alike), "rounds": rounds, "ways": timing.over(seconds, EQUAL)}


def told(table: Mapping[str, Any]) -> list[str]:
    """The result for people."""
    near, equal = table["ways"][NEAR], table["ways"][EQUAL]
    of, size = near["ratio"], f"{table['images']:,} images, {table['alike']:,} of them alike"
    return [
        f"near-duplicates of {size}: {near['seconds']:.2f} CPU s; equal ones alone, numpy.unique: "
        f"{equal['seconds']:.2f}; ratio {of['value']:.1f} [{of['low']:.1f}, {of['high']:.1f}]"
    ]


def _synthesised(count: int, folder: Path) -> tuple[Fingerprints, np.ndarray]:
    """Fingerprints, and the rows that are alike, ascending."""
    draw = np.random.default_rng(0)
    prints = Fingerprints.room(count, folder)
    prints.readable[:] = True
    prints.digests[:] = draw.integers(0, 2**63, (count, 2))
    prints.bits[:] = draw.integers(0, 2**63, count)
    prints.thumbs[:] = draw.integers(0, 255, (count, THUMB_BYTES), np.uint8)
    alike = np.sort(draw.choice(count, round(CLUSTER * count), replace=False))
    flips = np.append(np.uint64(1) << np.arange(BITS, dtype=np.uint64), np.uint64(0))
    if alike.size:
        prints.bits[alike] = prints.bits[alike[0]] ^ draw.choice(flips, len(alike))
        prints.thumbs[alike] = draw.integers(*SHADE, (len(alike), THUMB_BYTES), np.uint8)
    return prints, alike
