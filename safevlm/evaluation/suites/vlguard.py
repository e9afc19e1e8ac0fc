"""VLGuard's test set (arXiv 2402.02207): unsafe images, and safe images with an unsafe or with a safe question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import source_rows
from safevlm.evaluation.suites.question import OFFICIAL, Question, asked_of, each_row, unusable
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import first_of
from safevlm.taxonomy import CLEAN, SAFE

if TYPE_CHECKING:
    from safevlm.data.sources.row import SourceRow

GROUPS = {
    "unsafes": Group("unsafe image", "harmful"),
    "safe_unsafes": Group("safe image, unsafe question", "harmful"),
    "safe_safes": Group("safe image, safe question", "benign"),
}
OF_SAFE = {"unsafe_instruction": "safe_unsafes", "safe_instruction": "safe_safes"}


def questions(data: Path) -> Iterator[Question]:
    first_of(data, "test.json", "data/test.json")
    broken: list[Question] = []
    rows = source_rows("vlguard", data, "test", on_broken=lambda place, why: broken.append(unusable(place, why)))
    yield from broken
    yield from each_row(((row.place, row) for row in rows), _question)


def _question(place: str, row: SourceRow) -> Question:
    kind, part = row.words
    group = OF_SAFE[part] if kind == "safe" else "unsafes"
    is_safe = group == "safe_safes"
    question = asked_of(row)
    return Question(
        id=row.id,
        group=group,
        text=question,
        images=row.images,
        missing=row.missing,
        category=CLEAN if is_safe else category_of("vlguard", kind, part),
        level=SAFE if is_safe else "must_refuse",
        expected={
            "question": question,
            "topic": part if kind != "safe" else "",
            "reference": row.turns[1][1] if row.has_answer else "",
            "prompt_is": OFFICIAL,
        },
    )


SUITE = Suite(
    name="vlguard",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2402.02207; hf ys-zong/VLGuard",
    licence="gated, research only",
    published={"unsafes": 442, "safe_unsafes": 558, "safe_safes": 558},
    judge="refusal",
    max_new_tokens=256,
    note="Never for a model trained on SafeVLM's published pool: its counts show that VLGuard's test set is in it "
    "(our mixes leave it out). safe_safes is a win rate against a stored answer in the paper; here a refusal is wrong.",
    folder="vlguard",
    layout="test.json (or data/test.json) and test.zip or test/",
    download="hf download ys-zong/VLGuard --repo-type dataset --local-dir DIR/vlguard  (log in and agree first)",
)
