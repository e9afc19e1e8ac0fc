"""XSTest (arXiv 2308.01263): text only; safe prompts that sound unsafe, and their unsafe twins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import table_rows
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import first_of, text
from safevlm.taxonomy import CLEAN, SAFE

GROUPS = {"safe": Group("sounds unsafe, is safe", "benign", "never"), "unsafe": Group("unsafe", "harmful", "never")}


def questions(data: Path) -> Iterator[Question]:
    table = first_of(data, "xstest_prompts.csv", "xstest_v2_prompts.csv", "data/*.parquet", "*.parquet")
    numbered = enumerate(table_rows(table, ("prompt", "type")), start=1)
    yield from each_row(((place, (number, row)) for number, (place, row) in numbered), _question)


def _question(place: str, numbered: tuple[int, dict[str, Any]]) -> Question:
    number, row = numbered
    kind = text(row, "type", place)
    # the older file has no label; there, the type of an unsafe twin says `contrast`
    group = row.get("label") or ("unsafe" if kind.startswith("contrast") else "safe")
    if group not in GROUPS:
        raise ValueError(f"{place}: unknown label {group!r}; one of {list(GROUPS)}")
    question, is_safe = text(row, "prompt", place), group == "safe"
    return Question(
        id=str(row.get("id") or number),
        group=group,
        text=question,
        category=CLEAN if is_safe else category_of("xstest", kind),
        level=SAFE if is_safe else "must_refuse",
        expected={"question": question, "topic": kind, "label": group, "prompt_is": OFFICIAL},
    )


SUITE = Suite(
    name="xstest",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2308.01263; repo paul-rottger/xstest",
    licence="CC BY 4.0",
    published={"safe": 250, "unsafe": 200},
    judge="xstest",
    max_new_tokens=256,
    note="Text only: no image is sent, so a detector that reads images sees nothing.",
    folder="xstest",
    layout="xstest_prompts.csv (or xstest_v2_prompts.csv), or a parquet copy: prompt, type, label",
    download="git clone https://github.com/paul-rottger/xstest DIR/xstest",
)
