"""What a judge is: a row of the table `safevlm.evaluation.judges.JUDGES`, with or without a model behind it.

A judge sees a `Case`. Without a model it gives an `Assessment` at once; with one it gives the calls to make and, from
what the model said, the assessment. The trap is the answer under judgement, which may speak to the judge: `fill` puts
it into a prompt so that it can neither close its fence nor look like a verdict.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safevlm.evaluation.endpoint import Turn
from safevlm.evaluation.judges.options import JudgeOptions
from safevlm.evaluation.metrics.measures import Names, Unit
from safevlm.evaluation.suites.groups import Side

UNPARSED, JUDGE_REFUSED, FAILED, EMPTY, UNSUITED = "unparsed", "judge_refused", "failed", "empty", "unsuited"
UNSCORED = {
    UNPARSED: "the judge's own words hold no verdict",
    JUDGE_REFUSED: "the judge or its provider would not answer",
    FAILED: "no answer from the judge; judging again asks again",
    EMPTY: "the answer under judgement holds no word",
    UNSUITED: "this judge cannot score such a row",
}
"""Why a score has no value: each is counted apart, and none is safe or unsafe."""

FENCE = str.maketrans({"<": "\u2039", ">": "\u203a"})
CHAT_TOKEN = re.compile(r"\[(/?[A-Z_]{2,})\]")
MARKERS = ("verdict", "rating", "score", "safety", "refused", "convincing", "specific", "user", "assistant")
"""Words that our prompts and the guards' formats put before a verdict, and chat formats before a turn."""
_MARKER = re.compile(rf"\b(?:{'|'.join(MARKERS)})(?:\s+is)?\W*:", re.IGNORECASE)
_PLACE = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True)
class Case:
    """A reply as a judge sees it."""

    id: str
    group: str
    side: Side
    question: str
    """What is judged; for a wrapped attack the plain request in it."""
    answer: str
    images: tuple[Path, ...] = ()
    truth: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Assessment:
    value: float | None
    """0 to 1 in the sense of the side (harm done, answered right, score); None: a label of UNSCORED says why."""
    label: str
    raw: str = ""


Call = tuple[Turn, ...]
"""The messages of one call."""


@dataclass(frozen=True)
class Judge:
    name: str
    """As scores name it; a plug-in's row gets the name that asked for it."""
    about: str
    """One line for people."""
    measures: Mapping[Side, str]
    """In words: what the value says on each side that the judge can score."""
    counts: Mapping[Side, Names]
    """Measures per side (`safevlm.evaluation.metrics.measures.MEASURES`) that its scores can carry."""
    score: Callable[[Case], Assessment] | None = None
    """Judges without a model."""
    calls: Callable[[Case, str], list[Call]] | None = None
    """Judges with a model: what it is asked, given the prompt in use."""
    read: Callable[[Case, list[str]], Assessment] | None = None
    """What its words, one text per call, amount to."""
    prompts: tuple[str, ...] = ()
    """Our prompts; their hash is in every result."""
    needs_prompt: str = ""
    """Where the official prompt is to be had, for a judge that is worth nothing without it."""
    suits: Callable[[Case], str] = lambda case: ""
    """Why the judge cannot score a case; empty when it can."""
    sees_image: bool = False
    max_tokens: int = 16
    votes: int = 1
    """Calls per question, of which the majority counts."""
    is_completion: bool = False
    """A raw prompt instead of a chat."""
    may_be_cut: bool = False
    """A first word is enough; otherwise a text that was cut off holds no verdict."""
    empty_is: Assessment = field(default_factory=lambda: Assessment(None, EMPTY))
    """What an answer without a word is."""
    unit: Unit = "share"
    """How scores that are neither harm nor help are written in reports."""
    is_refusal_rule: bool = False
    """A rule for refusals and nothing else: how often it errs is measured on the labelled answers."""
    options: tuple[str, ...] = ()
    """Names of the `JudgeOptions` that are this judge's own."""
    configure: Callable[[Judge, JudgeOptions], Judge] | None = None
    """The judge as its own options make it; called for every judging."""

    @property
    def needs_model(self) -> bool:
        return self.calls is not None


def unparsed(said: Sequence[str] = ()) -> Assessment:
    return Assessment(None, UNPARSED, "\n---\n".join(said))


def fill(template: str, **texts: str) -> str:
    """The template with every `{name}` replaced by its text, defused; a `{name}` within a text stays as it is."""

    def text_of(place: re.Match[str]) -> str:
        if place[1] not in texts:
            raise ValueError(f"judge prompt: unknown place {{{place[1]}}}; one of {sorted(texts)}")
        return defused(texts[place[1]])

    return _PLACE.sub(text_of, template)


def defused(text: str) -> str:
    """Text of others, harmless in a prompt: no tag, no token of a chat format, nothing that reads as a verdict line."""
    plain = "".join(map(_without_marker, text.splitlines(keepends=True)))
    return CHAT_TOKEN.sub(r"[ \1 ]", plain.translate(FENCE))


def _without_marker(line: str) -> str:
    """The line; one that reads as a verdict in the letters that a verdict is read in, in those, without its colon."""
    read_as = unicodedata.normalize("NFKC", line)
    harmless = _MARKER.sub(lambda found: found[0].replace(":", " -"), read_as)
    return line if harmless == read_as else harmless


def prompted(case: Case, prompt: str, sees_image: bool, **more: str) -> list[Call]:
    """One call with one message: the prompt with question and answer in their places."""
    text = fill(prompt, question=case.question, answer=case.answer, **more)
    return [(Turn("user", text, case.images if sees_image else ()),)]
