"""Samples for the report: which ones, their pictures, and what every run said to them.

The same samples are shown for all runs, so that runs can be compared; rare outcomes come first, since a failure in a
hundred is what a reader wants to see.
"""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.files import Row, Score
from eval.groups import GROUPS, in_order
from eval.runs import Run

PER_GROUP = 12
WIDEST = 384  # pixels of an embedded picture
QUALITY = 85  # of JPEG


@dataclass(frozen=True)
class Answer:
    """What one run said to a sample."""

    run: str
    reply: str
    outcome: str
    refused_by: str
    saw: str
    """The verdict in words; empty without a detector."""
    is_agreed: bool
    """Whether the verdict is the truth."""


@dataclass(frozen=True)
class Card:
    """One sample with all its answers."""

    id: str
    group: str
    is_harmful: bool
    question: str
    truth: str
    pictures: list[str]
    """Data URIs; an empty text stands for a picture that is not there any more."""
    answers: list[Answer]


def cards(runs: Sequence[Run], per_group: int = PER_GROUP) -> list[Card]:
    """At most `per_group` samples of every group."""
    groups = in_order(row["group"] for run in runs for row in run.replies)
    return [_card(identity, runs) for group in groups for identity in choose(runs, group, per_group)]


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


def picture_uri(path: Path) -> str:
    """The picture as a data URI, made smaller when it is large; empty when the file is gone."""
    from PIL import Image

    if not path.is_file():
        return ""
    with Image.open(path) as image:
        small = image.convert("RGB")
    if max(small.size) <= WIDEST:
        return _uri(small, "PNG")
    small.thumbnail((WIDEST, WIDEST))
    return _uri(small, "JPEG")


def _uri(image, kind: str) -> str:  # noqa: ANN001 (Pillow's class, imported late)
    content = io.BytesIO()
    image.save(content, kind, quality=QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _card(identity: str, runs: Sequence[Run]) -> Card:
    found = [(run, row) for run in runs for row in run.replies if row["id"] == identity]
    first_run, first = found[0]
    return Card(
        id=identity,
        group=first["group"],
        is_harmful=GROUPS[first["group"]].is_harmful,
        question=first["request"]["text"],
        truth=f"{first['truth']['level']} · {first['truth']['category']}",
        pictures=[picture_uri(first_run.folder / image) for image in first["request"]["images"]],
        answers=[_answer(run, row, run.scores[identity]) for run, row in found],
    )


def _answer(run: Run, row: Row, score: Score) -> Answer:
    verdict, truth = row["verdict"], row["truth"]
    return Answer(
        run=run.name,
        reply=row["reply"],
        outcome=score.label,
        refused_by=row["refused_by"],
        saw=_saw(verdict) if run.has_detector else "",
        is_agreed=all(verdict[field] == truth[field] for field in ("level", "category")),
    )


def _saw(verdict: Row) -> str:
    """`must_refuse (0.98) · politics (0.99)`, or why the detector failed."""
    if verdict["error"]:
        return f"failed: {verdict['error']}"
    return " · ".join(
        _with_probability(verdict[field], verdict[f"{field}_probabilities"]) for field in ("level", "category")
    )


def _with_probability(name: str, probabilities: Row) -> str:
    return f"{name} ({probabilities[name]:.2f})" if name in probabilities else name
