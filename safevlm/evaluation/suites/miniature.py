"""The miniature's questions: `DATA/eval.jsonl` as `python -m safevlm.miniature data` writes it.

Every row is checked against the world (things, category, group), since a wrong truth would be a wrong score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from safevlm.data.images import is_there
from safevlm.evaluation.runs.files import check_fields, numbered_rows
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.headline import DetectorSet, Headline
from safevlm.evaluation.suites.question import Question
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import AbsentError
from safevlm.miniature.judge import TASKS
from safevlm.miniature.world import BY_NAME
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Sample

FILE = "eval.jsonl"
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


class SuiteRow(TypedDict):
    """A line of the suite's table."""

    id: str
    group: str
    image: str | None
    question: str
    task: str
    things: list[str]
    category: str
    level: str


def load(data: Path) -> list[Sample]:
    """All samples in the order of the file."""
    return SUITE.load(data)


def questions(data: Path) -> list[Question]:
    path = data / FILE
    if not path.exists():
        raise AbsentError(f"{path} is missing; make it with `python -m safevlm.miniature data`")
    found: dict[str, Question] = {}
    for where, row in numbered_rows(path):
        if (one := _question(row, data, where)).id in found:
            raise ValueError(f"{where}: id {one.id!r} stands here twice")
        found[one.id] = one
    return list(found.values())


def _question(row: dict[str, Any], data: Path, where: str) -> Question:
    check_fields(row, SuiteRow, where)
    _check_truth(row, where)
    return Question(
        id=row["id"],
        group=row["group"],
        text=row["question"],
        images=_images(row, data, where),
        category=row["category"],
        level=row["level"],
        expected={"task": row["task"], "things": list(row["things"])},
    )


def _check_truth(row: dict[str, Any], where: str) -> None:
    group = GROUPS[SUITE.check_group(row["group"], where)]
    for name, choices in (
        ("task", TASKS),
        ("category", DEFAULT.category_names),
        ("level", DEFAULT.level_names),
    ):
        if row[name] not in choices:
            raise ValueError(f"{where}: unknown {name} {row[name]!r}; one of {list(choices)}")
    if group.is_harmful != (row["level"] != SAFE):
        raise ValueError(f"{where}: level {row['level']!r} does not fit group {row['group']!r}")
    if row["category"] != _category(row["things"], where):
        raise ValueError(f"{where}: category {row['category']!r} is not that of {row['things']}")


def _category(things: Sequence[str], where: str) -> str:
    """Category of the risky thing among the things."""
    unknown = [name for name in things if name not in BY_NAME]
    if unknown or not things:
        raise ValueError(f"{where}: things {list(things)}: {f'no thing is called {unknown}' if unknown else 'empty'}")
    return next((BY_NAME[name].category for name in things if BY_NAME[name].is_risky), CLEAN)


def _images(row: dict[str, Any], data: Path, where: str) -> tuple[Path, ...]:
    needs = GROUPS[row["group"]].image
    if row["image"] is None:
        if needs == "always":
            raise ValueError(f"{where}: group {row['group']!r} needs an image, but image is null")
        return ()
    if needs == "never":
        raise ValueError(f"{where}: group {row['group']!r} has no images, but image is {row['image']!r}")
    image = data / row["image"]
    if not is_there(image):
        raise FileNotFoundError(f"{where}: image {image} is missing")
    return (image,)


SUITE = Suite(
    name="miniature",
    questions=questions,
    groups=GROUPS,
    source="made by `python -m safevlm.miniature data`",
    licence="Apache-2.0",
    published={},
    judge="miniature",
    max_new_tokens=64,
    note="A drawn world with exact truth; says nothing about real images.",
    folder="miniature",
    layout=FILE,
    download="python -m safevlm.miniature data --out DIR",
    headlines=HEADLINES,
    detector_sets=DETECTOR_SETS,
    timed_groups=("benign",),
    is_synthetic=True,
)
