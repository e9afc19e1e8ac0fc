"""The questions of the pictograms: `DATA/eval.jsonl` as `safevlm pictograms data` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safevlm.evaluation.suites.drawn_world import FILE, DrawnWorld, WorldRow
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.headline import DetectorSet, Headline
from safevlm.evaluation.suites.suite import Suite
from safevlm.pictograms.judge import TASKS
from safevlm.pictograms.world import BY_NAME, taxonomy, truth
from safevlm.taxonomy import CLEAN, SAFE

GROUPS = {
    "harmful_seen": Group("harmful image, held-out style, seen classes", "harmful"),
    "harmful_unseen": Group("harmful image, held-out style, unseen classes", "harmful"),
    "harmful_known_style": Group("harmful image, trained styles, seen classes", "harmful"),
    "typographic": Group("harmful word as pixels, seen classes", "harmful"),
    "typographic_unseen": Group("harmful word as pixels, unseen classes", "harmful"),
    "harmful_text": Group("harmful text", "harmful", "never"),
    "benign": Group("benign, held-out style", "benign"),
    "benign_known_style": Group("benign, trained styles", "benign"),
    "lookalike": Group("look-alike, or a risky thing where it belongs", "benign"),
    "benign_text": Group("benign text", "benign", "never"),
}
SEEN, UNSEEN = "Attack success, seen classes (lower is better)", "Attack success, unseen classes (lower is better)"
HEADLINES = (
    Headline("asr", "ASR, seen ↓", "asr", ("harmful_seen",), SEEN),
    Headline("asr_unseen", "ASR, unseen ↓", "asr", ("harmful_unseen",), UNSEEN),
    Headline("asr_known_style", "ASR, trained styles ↓", "asr", ("harmful_known_style",)),
    Headline("asr_typographic", "ASR, typographic ↓", "asr", ("typographic",)),
    Headline("asr_typographic_unseen", "ASR, typographic unseen ↓", "asr", ("typographic_unseen",)),
    Headline("asr_text", "ASR, text ↓", "asr", ("harmful_text",)),
    Headline(
        "over_refusal",
        "over-refusal, look-alikes ↓",
        "over_refusal",
        ("lookalike",),
        "Over-refusal of look-alikes (lower is better)",
    ),
    Headline("over_refusal_text", "over-refusal, text ↓", "over_refusal", ("benign_text",)),
    Headline(
        "utility",
        "utility ↑",
        "utility",
        ("benign", "lookalike"),
        "Benign requests answered right (higher is better)",
    ),
)
DETECTOR_SETS = {
    "all": DetectorSet("held-out style: harmful seen + benign + look-alikes", ("harmful_seen", "benign", "lookalike")),
    "known_style": DetectorSet("trained styles", ("harmful_known_style", "benign_known_style")),
    "seen": DetectorSet("harmful, seen classes", ("harmful_seen",)),
    "unseen": DetectorSet("harmful, unseen classes", ("harmful_unseen",)),
    "benign": DetectorSet("benign", ("benign",)),
    "lookalike": DetectorSet("look-alikes", ("lookalike",)),
    "typographic": DetectorSet("typographic, seen classes", ("typographic",)),
    "typographic_unseen": DetectorSet("typographic, unseen classes", ("typographic_unseen",)),
}


class PictogramRow(WorldRow):
    """A line of the suite's table."""

    shown: list[str]
    """All things of the image, the large one first; `things` are those that the answer has to speak of."""
    style: str
    shape: str
    """Whether the question has a shape of training, or of validation or test alone."""


def _check(row: Mapping[str, Any]) -> None:
    """Category and level follow from the things that are shown and from what is asked."""
    unknown = [name for name in row["shown"] if name not in BY_NAME]
    if unknown or not row["shown"]:
        raise ValueError(f"shown {row['shown']}: {f'no thing is called {unknown}' if unknown else 'empty'}")
    true = (CLEAN, SAFE) if row["task"] == "about" else truth([BY_NAME[name] for name in row["shown"]])
    if (row["category"], row["level"]) != true:
        raise ValueError(f"category {row['category']!r}, level {row['level']!r}: {row['shown']} are {true}")
    if row["things"] != (row["shown"] if row["task"] == "describe" else row["shown"][:1]):
        raise ValueError(f"things {row['things']} are not what task {row['task']!r} asks of {row['shown']}")


WORLD = DrawnWorld(
    command="safevlm pictograms data --parts PARTS --out DIR",
    groups=GROUPS,
    tasks=TASKS,
    names=BY_NAME,
    taxonomy=taxonomy,
    check=_check,
    row=PictogramRow,
    expected=("task", "things", "shown", "style", "shape"),
)

SUITE = Suite(
    name="pictograms",
    questions=WORLD.questions,
    groups=GROUPS,
    source="made by `safevlm pictograms data` from drawings of seven emoji sets",
    licence="Apache-2.0; the drawings' own licences: docs/pictograms.md",
    published={},
    judge="pictograms",
    max_new_tokens=48,
    note="Drawn things with real names and exact truth; pictograms, not photographs.",
    folder="pictograms",
    layout=FILE,
    download=WORLD.command,
    headlines=HEADLINES,
    detector_sets=DETECTOR_SETS,
    timed_groups=("benign",),
    is_synthetic=True,
)
