"""What a suite's own table reports, for suites whose authors count something else than every side as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

AVERAGE = "average"
"""Column of a published table: the plain mean over all groups."""
MARK = "published, judged by {judge}, not measured here"


@dataclass(frozen=True)
class Headline:
    """One column of a suite's own table: a measure over some of its groups."""

    name: str
    """Key in `summary.json`."""
    title: str
    measure: str
    """Name in `safevlm.evaluation.metrics.measures.MEASURES`."""
    groups: tuple[str, ...]
    chart: str = ""
    """Title of its bar chart; empty: none is drawn."""


@dataclass(frozen=True)
class DetectorSet:
    """Groups over which a detector's accuracy is reported together."""

    title: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class PublishedTable:
    """Scores of a paper, in the paper's units, shown beside what was measured here and never among it.

    A published number is an orientation and no baseline where judge prompts or splits were not published.
    """

    columns: tuple[str, ...]
    """Group names of the suite, and perhaps AVERAGE."""
    rows: Mapping[str, tuple[float, ...]]
    charted: tuple[str, ...]
    """Rows that charts show as marks."""
    judge: str
    """Who judged in the paper."""
    source: str

    @property
    def mark(self) -> str:
        return MARK.format(judge=self.judge)
