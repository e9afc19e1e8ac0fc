"""Rows found beside rows published, and the refusal to go on with fewer, or without an image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from safevlm.evaluation.suites.question import FURTHER, MISSING, Question
from safevlm.evaluation.suites.suite import TOTAL, Suite
from safevlm.types import Sample

log = logging.getLogger(__name__)
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class SuiteCount:
    part: str
    """A group, or TOTAL."""
    found: int
    published: int | None

    @property
    def is_short(self) -> bool:
        return self.published is not None and self.found < self.published

    def __str__(self) -> str:
        told = "an unknown number" if self.published is None else f"{self.published:,}"
        return f"{self.part}: {self.found:,} rows found, {told} published"


def counts(suite: Suite, rows: Sequence[Sample | Question]) -> list[SuiteCount]:
    """Every group of the suite, and the total where that is published; rows without their image count."""
    found = Counter(row.group for row in rows if not row.expected.get(FURTHER))
    parts = [SuiteCount(name, found[name], suite.published.get(name)) for name in suite.groups]
    total = [SuiteCount(TOTAL, found.total(), suite.published[TOTAL])] if TOTAL in suite.published else []
    return parts + total


def checked(suite: Suite, samples: Sequence[Sample], partial: bool) -> list[Sample]:
    """The samples that can be asked. ValueError: fewer than published, or an image is missing, unless `partial`."""
    short = [count for count in counts(suite, samples) if count.is_short]
    for count in (count for count in counts(suite, samples) if count.published not in (None, count.found)):
        log.warning("suite %s: %s", suite.name, count)
    if short and suite.is_sure and not partial:
        told = "; ".join(map(str, short))
        raise ValueError(
            f"suite {suite.name!r} is not complete: {told}. Download it again, or go on with less by --partial"
        )
    return _with_images(suite.name, samples, partial)


def _with_images(name: str, samples: Sequence[Sample], partial: bool) -> list[Sample]:
    lacking = [sample for sample in samples if MISSING in sample.expected]
    if not lacking:
        return list(samples)
    named = ", ".join(f"{sample.request.id} ({sample.expected[MISSING][0]})" for sample in lacking[:SHOWN])
    told = f"{len(lacking)} of {len(samples)} rows lack their image: {named}{', …' if len(lacking) > SHOWN else ''}"
    if not partial:
        raise ValueError(f"suite {name!r}: {told}. Download the images, or leave these rows out by --partial")
    log.warning("suite %s: %s; left out", name, told)
    return [sample for sample in samples if MISSING not in sample.expected]
