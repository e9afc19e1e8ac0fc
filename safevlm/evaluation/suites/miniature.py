"""The miniature's questions: `DATA/eval.jsonl` as `python -m safevlm.miniature data` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safevlm.evaluation.suites.drawn_world import FILE, DrawnWorld
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.headline import DetectorSet, Headline
from safevlm.evaluation.suites.suite import Suite
from safevlm.miniature.judge import TASKS
from safevlm.miniature.world import BY_NAME
from safevlm.taxonomy import CLEAN, DEFAULT
from safevlm.types import Sample

GROUPS = {
    "harmful_seen": Group("harmful image, seen symbols", "harmful"),
    "harmful_unseen": Group("harmful image, unseen symbols", "harmful"),
    "typographic": Group("harmful word drawn as pixels, seen symbols", "harmful"),
    "typographic_unseen": Group("harmful word drawn as pixels, unseen symbols", "harmful"),
    "harmful_text": Group("harmful text", "harmful", "never"),
    "benign": Group("benign", "benign", "either"),
    "lookalike": Group("benign look-alike", "benign"),
}
BENIGN = ("benign", "lookalike")
SEEN, UNSEEN = "Attack success, seen symbols (lower is better)", "Attack success, unseen symbols (lower is better)"
HEADLINES = (
    Headline("asr", "ASR, seen ↓", "asr", ("harmful_seen",), SEEN),
    Headline("asr_unseen", "ASR, unseen ↓", "asr", ("harmful_unseen",), UNSEEN),
    Headline("asr_typographic", "ASR, typographic ↓", "asr", ("typographic",)),
    Headline("asr_typographic_unseen", "ASR, typographic unseen ↓", "asr", ("typographic_unseen",)),
    Headline("asr_text", "ASR, text ↓", "asr", ("harmful_text",)),
    Headline("over_refusal", "over-refusal ↓", "over_refusal", BENIGN, "Over-refusal (lower is better)"),
    Headline("utility", "utility ↑", "utility", BENIGN, "Benign requests answered right (higher is better)"),
)
DETECTOR_SETS = {
    "all": DetectorSet("harmful seen + benign + look-alikes", ("harmful_seen", "benign", "lookalike")),
    "seen": DetectorSet("harmful, seen symbols", ("harmful_seen",)),
    "benign": DetectorSet("benign", ("benign",)),
    "lookalike": DetectorSet("benign look-alikes", ("lookalike",)),
    "unseen": DetectorSet("harmful, unseen symbols", ("harmful_unseen",)),
    "typographic": DetectorSet("typographic, seen symbols", ("typographic",)),
    "typographic_unseen": DetectorSet("typographic, unseen symbols", ("typographic_unseen",)),
}
"""`all`, the headline, is what training knows, harmful or not."""


def load(data: Path) -> list[Sample]:
    """All samples in the order of the file."""
    return SUITE.load(data)


def _check(row: Mapping[str, Any]) -> None:
    """The category follows from the things; the level hangs on a frame that the row does not name."""
    true = next((BY_NAME[name].category for name in row["things"] if BY_NAME[name].is_risky), CLEAN)
    if row["category"] != true:
        raise ValueError(f"category {row['category']!r} is not that of {row['things']}")


WORLD = DrawnWorld(
    command="python -m safevlm.miniature data --out DIR",
    groups=GROUPS,
    tasks=TASKS,
    names=BY_NAME,
    taxonomy=lambda: DEFAULT,
    check=_check,
)
SUITE = Suite(
    name="miniature",
    questions=WORLD.questions,
    groups=GROUPS,
    source="made by `python -m safevlm.miniature data`",
    licence="Apache-2.0",
    published={},
    judge="miniature",
    max_new_tokens=64,
    note="A drawn world with exact truth; says nothing about real images.",
    folder="miniature",
    layout=FILE,
    download=WORLD.command,
    headlines=HEADLINES,
    detector_sets=DETECTOR_SETS,
    timed_groups=("benign",),
    is_synthetic=True,
)
