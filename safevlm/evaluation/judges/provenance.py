"""Who judged a run, as the report tells it: `judge.json` beside the scores, or what the scores themselves say.

Two judgings share a column only if their fingerprints are equal. The trap is a `judge.json` of other scores: the file
holds the digest of those it speaks of, and a difference is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from safevlm.evaluation.judges import JUDGES, record
from safevlm.evaluation.judges.base import UNSCORED
from safevlm.evaluation.metrics.measures import Measure, Names, Unit, measures_named
from safevlm.evaluation.runs.files import SCORES, Row
from safevlm.evaluation.runs.run import Run
from safevlm.evaluation.suites.groups import Side

NO_WORDS = hashlib.sha256(b"").hexdigest()[:16]
"""What is recorded as prompt of a judge that has none."""
OUTCOMES = ("scored", *UNSCORED)


@dataclass(frozen=True)
class JudgeProvenance:
    name: str
    """As in the scores: `NAME`, or `NAME@MODEL`."""
    fingerprint: str
    """Equal for two judgings that compare; empty where nothing was recorded."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """`judge.json`; empty where there is none."""

    @property
    def kind(self) -> str:
        return self.name.partition("@")[0]

    @cached_property
    def counts(self) -> Mapping[Side, Names]:
        """Measures per side: as the judging recorded them, else as the judge's row has them.

        ValueError: neither. The name in a run's folder never makes a module run.
        """
        recorded = self.facts.get("counts")
        if recorded is None and self.kind not in JUDGES:
            raise ValueError(
                f"judge {self.kind!r} is unknown here, and no {record.FILE} says what it counts; judge again"
            )
        return recorded if recorded is not None else JUDGES[self.kind].counts

    @cached_property
    def unit(self) -> Unit:
        """Of scores that are neither harm nor help."""
        return self.facts.get("unit") or (JUDGES[self.kind].unit if self.kind in JUDGES else "share")

    def measures(self, side: Side) -> dict[str, Measure]:
        """What is counted on one side."""
        return measures_named(self.counts.get(side, ()))

    @property
    def key(self) -> tuple[str, str]:
        return (self.name, self.fingerprint)


def provenance_of(run: Run) -> JudgeProvenance:
    """Who judged a run. ValueError: two judges in one run, or a record of other scores."""
    names = sorted({score.judge for score in run.scores.values()})
    if len(names) > 1:
        raise ValueError(f"{run.folder / SCORES}: judged by {names} at once; judge the run again")
    facts = _facts(run)
    return JudgeProvenance(", ".join(names), str(facts.get("fingerprint", "")), facts)


def outcomes(run: Run) -> dict[str, int]:
    """How many scores have a value, and how many lack one for which reason; zeros too."""
    counts = Counter("scored" if score.value is not None else score.label for score in run.scores.values())
    return {name: counts.pop(name, 0) for name in OUTCOMES} | dict(counts)


def told(one: JudgeProvenance) -> str:
    """The footnote: model, prompt, decoding, and whether the image was seen."""
    facts = one.facts
    if not facts:
        return f"{one.name}; no {record.FILE} tells how it judged: judge again to have one"
    return "; ".join(filter(None, (f"{one.name}: {facts.get('about', '')}", *_details(facts), _saw(facts))))


def _details(facts: Mapping[str, Any]) -> list[str]:
    if not facts.get("model"):
        return [
            "" if "no model" in facts.get("about", "") else "no model",
            f"words sha256 {facts['prompt_sha256']}" if facts.get("prompt_sha256") != NO_WORDS else "",
            _rules(facts.get("refusal_rules") or {}),
        ]
    served = ", ".join(facts.get("served_as") or [])
    place = str(facts.get("place", "")).partition("://")
    decoding = ", ".join(f"{name} {value}" for name, value in (facts.get("decoding") or {}).items())
    return [
        f"model {facts['model']}" + (f", answered as {served}" if served else ""),
        f"at {place[2] or place[0]}" if place[0] else "",
        f"prompt: {facts.get('prompt_is')}, sha256 {facts.get('prompt_sha256')}",
        decoding,
        f"{facts['votes']} votes" if (facts.get("votes") or 1) > 1 else "",
    ]


def _rules(measured: Mapping[str, Any]) -> str:
    """How often the rules err, by answers that people labelled."""
    told_of = [
        f"{name} {100 * one['value']:.0f} % [{100 * one['low']:.0f}, {100 * one['high']:.0f}] n {one['n']}"
        for name in ("precision", "recall")
        if (one := measured.get(name)) and one["value"] is not None
    ]
    return f"refusals on labelled answers: {', '.join(told_of)}" if told_of else ""


def _saw(facts: Mapping[str, Any]) -> str:
    return "saw the image" if facts.get("sees_image") else "did not see the image"


def _facts(run: Run) -> Row:
    path = run.folder / record.FILE
    facts = record.read(run.folder)
    digest = hashlib.sha256((run.folder / SCORES).read_bytes()).hexdigest()
    if facts.get("scores_sha256", digest) != digest:
        raise ValueError(f"{path}: tells of other scores than the {SCORES} beside it; judge again")
    return facts
