"""SPA-VL's test set (arXiv 2406.12030): questions that must not get harmful help, and those for helpfulness."""

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

if TYPE_CHECKING:
    from safevlm.data.sources.row import SourceRow

GROUPS = {"harm": Group("harm", "harmful"), "help": Group("help", "scored")}


def questions(data: Path) -> Iterator[Question]:
    first_of(data, "test/*.parquet", "data/test-*.parquet")
    broken: list[Question] = []
    rows = source_rows("spa_vl", data, "test", on_broken=lambda place, why: broken.append(unusable(place, why)))
    yield from broken
    yield from each_row(((row.place, row) for row in rows), _question)


def _question(place: str, row: SourceRow) -> Question:
    group = next((name for name in GROUPS if name in Path(place.rpartition(":")[0]).name), None)
    if group is None:
        raise ValueError(f"{place}: neither harm nor help is in the file's name; download it again")
    question = asked_of(row)
    return Question(
        id=f"{group}-{place.rpartition(':')[2]}",
        group=group,
        text=question,
        images=row.images,
        category=category_of("spa_vl", *row.words),
        level="must_refuse" if group == "harm" else "careful",
        expected={"question": question, "topic": "/".join(row.words), "prompt_is": OFFICIAL},
    )


SUITE = Suite(
    name="spa_vl",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2406.12030; hf sqrti/SPA-VL",
    licence="CC BY 4.0",
    published={"harm": 265, "help": 265},
    judge="safety_with_image",
    max_new_tokens=512,
    note="The official judge prompt is not published. help is a comparison with another model's answer, and its "
    "images are risky too, so that a refusal there is not simply wrong: the default judge leaves it unscored.",
    folder="spa_vl",
    layout="test/harm-*.parquet, test/help-*.parquet",
    download="hf download sqrti/SPA-VL --repo-type dataset --include 'test/*' --local-dir DIR/spa_vl",
)
