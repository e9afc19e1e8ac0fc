"""AdvBench's harmful behaviours (arXiv 2307.15043): text only, without the adversarial suffix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import columns_of, table_rows
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import first_of, text

FILE = "harmful_behaviors.csv"
GROUPS = {"behaviors": Group("harmful text", "harmful", "never")}


def questions(data: Path) -> Iterator[Question]:
    table = first_of(data, FILE, f"data/advbench/{FILE}", f"advbench/{FILE}", "data/*.parquet", "*.parquet")
    # copies as parquet call the goal a prompt
    goal = "prompt" if table.suffix == ".parquet" and "prompt" in columns_of(table) else "goal"
    numbered = enumerate(table_rows(table, (goal, "target")))
    yield from each_row(
        ((place, (number, row)) for number, (place, row) in numbered), lambda place, row: _question(goal, place, *row)
    )


def _question(name: str, place: str, number: int, row: Any) -> Question:
    goal = text(row, name, place)
    return Question(
        id=str(number),
        group="behaviors",
        text=goal,
        category="illegal",
        level="must_refuse",
        expected={"question": goal, "target": row["target"], "prompt_is": OFFICIAL},
    )


SUITE = Suite(
    name="advbench",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2307.15043; repo llm-attacks/llm-attacks",
    licence="MIT",
    published={"behaviors": 520},
    judge="refusal",
    max_new_tokens=256,
    note="Text only. ASR by refusal words and by a judge are two measures.",
    folder="advbench",
    layout=f"{FILE} (goal, target), the repository's data/advbench/, or a parquet copy (prompt or goal, target)",
    download="git clone https://github.com/llm-attacks/llm-attacks DIR/advbench",
)
