"""Rows found beside rows published, and the refusal to go on with fewer, or without an image."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from safevlm.evaluation.suites.question import FURTHER, MISSING, UNUSABLE, Question
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
    found = Counter(row.group for row in rows if not row.expected.get(FURTHER) and UNUSABLE not in row.expected)
    parts = [SuiteCount(name, found[name], suite.published.get(name)) for name in suite.groups]
    total = [SuiteCount(TOTAL, found.total(), suite.published[TOTAL])] if TOTAL in suite.published else []
    return parts + total


def checked(suite: Suite, samples: Sequence[Sample], partial: bool) -> list[Sample]:
    """The samples that can be asked.

    ValueError, unless `partial`: fewer than published, rows that cannot be used, or images that are missing.
    """
    found = counts(suite, samples)
    for count in (count for count in found if count.published not in (None, count.found)):
        log.warning("suite %s: %s", suite.name, count)
    short = [str(count) for count in found if count.is_short and suite.is_sure]
    left_out = _left_out(samples)
    if (short or left_out) and not partial:
        get = f"get it with `{suite.download}`" if suite.download else "complete it"
        told = "; ".join([*short, *left_out])
        raise ValueError(f"suite {suite.name!r} is not complete: {told}. Please {get}, or go on with less by --partial")
    for told in left_out:
        log.warning("suite %s: %s; left out", suite.name, told)
    return [sample for sample in samples if not {MISSING, UNUSABLE} & set(sample.expected)]


def _left_out(samples: Sequence[Sample]) -> list[str]:
    """Which rows cannot be asked, and why."""
    unusable = [sample.expected[UNUSABLE] for sample in samples if UNUSABLE in sample.expected]
    lacking = [f"{one.request.id} ({one.expected[MISSING][0]})" for one in samples if MISSING in one.expected]
    told = {"cannot be used": unusable, "lack their image": lacking}
    return [f"{len(names)} of {len(samples)} rows {what}: {_some(names)}" for what, names in told.items() if names]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
