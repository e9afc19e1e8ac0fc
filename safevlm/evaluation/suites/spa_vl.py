"""SPA-VL's test set (arXiv 2406.12030): questions that must not get harmful help, and those for helpfulness."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import source_rows
from safevlm.evaluation.suites.question import OFFICIAL, Question
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import first_of

GROUPS = {"harm": Group("harm", "harmful"), "help": Group("help", "scored")}


def questions(data: Path) -> Iterator[Question]:
    first_of(data, "test/*.parquet", "data/test-*.parquet")
    for row in source_rows("spa_vl", data, "test"):
        group = next((name for name in GROUPS if name in Path(row.place.rpartition(":")[0]).name), None)
        if group is None:
            raise ValueError(f"{row.place}: neither harm nor help is in the file's name; download it again")
        question = row.turns[0][1].removeprefix("<image>\n")
        yield Question(
            id=f"{group}-{row.place.rpartition(':')[2]}",
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
