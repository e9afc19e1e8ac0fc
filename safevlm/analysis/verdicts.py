"""What a detector says of labelled images, as columns: truth, verdict, probabilities, risk.

Any detector will do: whatever has `detect(request, sight)`. One without probabilities has verdicts and no curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from safevlm.analysis import detection
from safevlm.analysis.labelled_images import ImageSet, LabelledImage
from safevlm.defenses import Defense
from safevlm.defenses.calibration import risk_of
from safevlm.intervals import Floats
from safevlm.model.loading import Loaded
from safevlm.types import Verdict

READ_OUTS = ("category", "level")
ALL = "all"
"""Name of the union of several sets."""


@dataclass(frozen=True)
class DetectorVerdicts:
    """The images of a set and the detector's verdicts, in the same order."""

    name: str
    images: tuple[LabelledImage, ...]
    verdicts: tuple[Verdict, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def risky(self) -> NDArray[np.bool_]:
        """Truth."""
        return np.array([not image.is_clean for image in self.images], dtype=bool)

    @property
    def flagged(self) -> NDArray[np.bool_]:
        """The verdict is not clean, so that the policy may act."""
        return np.array([not verdict.is_clean for verdict in self.verdicts], dtype=bool)

    @property
    def risk(self) -> Floats | None:
        """1 - p(clean) of every image; None when the detector gives no probabilities."""
        if not all(verdict.category_probabilities for verdict in self.verdicts):
            return None
        return np.array([risk_of(verdict.category_probabilities) for verdict in self.verdicts])

    def truth(self, read_out: str) -> list[str | None]:
        return [getattr(image, read_out) for image in self.images]

    def said(self, read_out: str) -> list[str]:
        return [getattr(verdict, read_out) for verdict in self.verdicts]

    def probabilities(self, read_out: str, names: Sequence[str]) -> Floats | None:
        """(n, names) of the read-out; None when the detector gives none."""
        rows = [getattr(verdict, f"{read_out}_probabilities") for verdict in self.verdicts]
        return np.array([[row[name] for name in names] for row in rows]) if all(rows) else None

    def at(self, rows: Sequence[int] | NDArray[np.intp]) -> DetectorVerdicts:
        """Some of the images."""
        return DetectorVerdicts(
            self.name, tuple(self.images[row] for row in rows), tuple(self.verdicts[row] for row in rows)
        )


def judge(loaded: Loaded, guard: Defense, sets: Sequence[ImageSet], batch_size: int = 32) -> list[DetectorVerdicts]:
    """Every image of every set, once. An error of the detector is ours: it stops the analysis."""
    return [
        DetectorVerdicts(
            one.name, one.images, tuple(detection.detect_all(loaded, one.images, guard.detect, batch_size, one.name))
        )
        for one in sets
    ]


def union(sets: Sequence[DetectorVerdicts], name: str = ALL) -> DetectorVerdicts:
    return DetectorVerdicts(
        name,
        tuple(image for one in sets for image in one.images),
        tuple(verdict for one in sets for verdict in one.verdicts),
    )


def confusion(judged: DetectorVerdicts, read_out: str, names: Sequence[str]) -> NDArray[np.int64]:
    """(names, names) counts, rows the truth; unlabelled images are left out."""
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for truth, said in zip(judged.truth(read_out), judged.said(read_out), strict=True):
        if truth is not None:
            counts[names.index(truth), names.index(said)] += 1
    return counts
