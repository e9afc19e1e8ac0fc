"""Samples for the report: which ones, their images, and what every run said to them.

The same samples are shown for all runs, so that runs can be compared; rare outcomes come first, since a failure in a
hundred is what a reader wants to see. A page of many suites shows fewer of each group, so that it can still be opened.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safevlm.data.data_uris import thumbnail_uri
from safevlm.data.images import ImageError, open_image
from safevlm.evaluation.metrics.measures import HARMFUL_FROM, WITHHELD
from safevlm.evaluation.runs.files import Row, Score
from safevlm.evaluation.runs.run import Run, has_looked
from safevlm.evaluation.suites.groups import Side

PER_GROUP = 12
MOST_CARDS = 360  # of a page; some 10 kB each
LEAST_PER_GROUP = 2
WIDEST = 288  # pixels of an embedded image, twice what is shown
LONGEST = 4_000  # letters of a shown text

State = Literal["failed", "fine", "unknown"]


@dataclass(frozen=True)
class Answer:
    """What one run said to a sample."""

    run: str
    reply: str
    outcome: str
    state: State
    """Whether that is wrong on the group's side; unknown without a score."""
    is_folded: bool
    """Harmful help, and on real benchmarks whatever may be."""
    judge: str
    value: float | None
    refused_by: str
    saw: str
    """The verdict in words; empty without a detector."""
    is_agreed: bool
    """Whether the verdict is the truth, or there is none."""


@dataclass(frozen=True)
class SampleCard:
    """One sample with all its answers."""

    id: str
    suite: str
    group: str
    title: str
    """Of the group."""
    category: str
    is_veiled: bool
    """Whether its images are shown only on request."""
    is_folded: bool
    """Whether its question is."""
    question: str
    truth: str
    images: list[str]
    """Data URIs; an empty text stands for an image that is not there any more."""
    answers: list[Answer]


def cards(runs: Sequence[Run], per_group: int = PER_GROUP) -> list[SampleCard]:
    """At most `shown_of` samples of every group of every suite."""
    places = _places(runs)
    count = shown_of(len(places), per_group)
    found: list[SampleCard] = []
    for suite, group in places:
        own = [run for run in runs if run.suite.name == suite]
        chosen = choose(own, group, count)
        rows = {id(run): {row["id"]: row for row in run.replies if row["id"] in set(chosen)} for run in own}
        found.extend(
            _card(name, [(run, rows[id(run)][name]) for run in own if name in rows[id(run)]]) for name in chosen
        )
    return found


def shown_of(groups: int, per_group: int = PER_GROUP) -> int:
    """Samples per group of a page with so many groups."""
    return min(per_group, max(LEAST_PER_GROUP, MOST_CARDS // max(1, groups)))


def per_page(runs: Sequence[Run], per_group: int = PER_GROUP) -> int:
    """Samples per group on the page of these runs."""
    return shown_of(len(_places(runs)), per_group)


def choose(runs: Sequence[Run], group: str, count: int) -> list[str]:
    """Ids of a group: one for every outcome that some run had, rarest first, then at random (seeded)."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for row in run.replies:
            if row["group"] == group:
                outcomes.setdefault((run.name, run.scores[row["id"]].label), []).append(row["id"])
    chosen: dict[str, None] = {}
    for ids in sorted(outcomes.values(), key=len):
        if chosen.keys().isdisjoint(ids):
            chosen[ids[0]] = None
    rest = sorted({identity for ids in outcomes.values() for identity in ids} - chosen.keys())
    random.Random(0).shuffle(rest)
    return [*chosen, *rest][:count]


def thumbnail(path: Path) -> str:
    """The image as a data URI; empty when the file is gone or no image."""
    try:
        return thumbnail_uri(open_image(path), WIDEST)
    except (ImageError, OSError):
        return ""


def state_of(side: Side, score: Score) -> State:
    if score.value is None:
        return "unknown"
    if side == "harmful":
        return "failed" if score.value > HARMFUL_FROM else "fine"
    return "failed" if score.value <= HARMFUL_FROM or (side == "benign" and score.label in WITHHELD) else "fine"


def _places(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(suite, group), in order."""
    suites = {run.suite.name: run.suite for run in runs}
    return [(name, group) for name, suite in suites.items() for group in suite.in_order(_groups(runs, name))]


def _groups(runs: Sequence[Run], suite: str) -> Iterable[str]:
    return {row["group"] for run in runs if run.suite.name == suite for row in run.replies}


def _card(identity: str, found: Sequence[tuple[Run, Row]]) -> SampleCard:
    first_run, first = found[0]
    suite = first_run.suite
    group = suite.groups[first["group"]]
    return SampleCard(
        id=identity,
        suite=suite.name,
        group=first["group"],
        title=group.title,
        category=first["truth"]["category"],
        is_veiled=not group.is_benign,
        is_folded=group.is_harmful and not suite.is_synthetic,
        question=_cut(first["request"]["text"]),
        truth=_truth(first["truth"]),
        images=[thumbnail(first_run.folder / image) for image in first["request"]["images"]],
        answers=[_answer(run, row, run.scores[identity], group.side) for run, row in found],
    )


def _truth(truth: Row) -> str:
    words = [truth["level"], truth["category"], *(str(truth[name]) for name in ("topic", "label") if truth.get(name))]
    return " · ".join(dict.fromkeys(words))


def _answer(run: Run, row: Row, score: Score, side: Side) -> Answer:
    verdict, truth = row["verdict"], row["truth"]
    state = state_of(side, score)
    may_harm = state == "failed" or (state == "unknown" and not run.suite.is_synthetic)
    return Answer(
        run=run.name,
        reply=_cut(row["reply"]),
        outcome=score.label,
        state=state,
        is_folded=side != "benign" and may_harm,
        judge=score.judge,
        value=score.value,
        refused_by=row["refused_by"],
        saw=_saw(row) if run.has_detector else "",
        is_agreed=not has_looked(row) or all(verdict[field] == truth[field] for field in ("level", "category")),
    )


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … (cut; {len(text):,} letters)"


def _saw(row: Row) -> str:
    """`saw must_refuse (0.98) · politics (0.99)`, `not looked`, or why the detector failed."""
    verdict = row["verdict"]
    if verdict["error"]:
        return f"detector failed: {verdict['error']}"
    if not has_looked(row):
        return "not looked"
    said = (_with_probability(verdict[field], verdict[f"{field}_probabilities"]) for field in ("level", "category"))
    return f"saw {' · '.join(said)}"


def _with_probability(name: str, probabilities: Row) -> str:
    return f"{name} ({probabilities[name]:.2f})" if name in probabilities else name
