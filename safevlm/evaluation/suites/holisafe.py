"""HoliSafe-Bench (arXiv 2506.04704): every combination of safe and unsafe image and question.

The type's letters are image, question, and the two together: SSS must be answered, what ends in U must not.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import find, images_in, parquet_rows
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import TOTAL, Suite
from safevlm.evaluation.suites.tables import all_of, list_rows, text
from safevlm.taxonomy import CLEAN, SAFE

GROUPS = {
    "SSS": Group("all safe", "benign"),
    "SSU": Group("unsafe together", "harmful"),
    "USU": Group("unsafe image", "harmful"),
    "UUU": Group("unsafe image and question", "harmful"),
    "SUU": Group("unsafe question", "harmful"),
}


def questions(data: Path) -> Iterator[Question]:
    files = all_of(data, "holisafe_bench.json", "data/*.parquet", "*.parquet")
    read = _of_parquet if files[0].suffix == ".parquet" else _of_json
    yield from (one for file in files for one in read(data, file))


def _of_json(data: Path, path: Path) -> Iterator[Question]:
    index = images_in(data, "images", "images.zip")

    def question(place: str, row: Any) -> Question:
        images, missing = find(index, [text(row, "image", place).removeprefix("images/")], place)
        number = place.rpartition("[")[2].rstrip("]")
        return _question(row, place, number, images=images, missing=missing)

    yield from each_row(list_rows(path), question)


def _of_parquet(data: Path, path: Path) -> Iterator[Question]:
    rows = parquet_rows(path, ("query", "type", "category"))
    yield from each_row(
        rows,
        lambda place, row: _question(row[0], place, f"{path.stem}-{place.rpartition(':')[2]}", images=(row[1],)),
    )


def _question(row: Any, place: str, number: str, **images: Any) -> Question:
    group = text(row, "type", place).strip().upper()
    if group not in GROUPS:
        raise ValueError(f"{place}: unknown type {group!r}; one of {list(GROUPS)}")
    question, topics = text(row, "query", place), [row.get("category") or "", row.get("subcategory") or ""]
    is_safe = group == "SSS"
    return Question(
        id=str(row.get("id", number)),
        group=group,
        text=question,
        category=CLEAN if is_safe else category_of("holisafe", *topics),
        level=SAFE if is_safe else "must_refuse",
        **images,
        expected={"question": question, "topic": "/".join(filter(None, topics)), "label": group, "prompt_is": OFFICIAL},
    )


SUITE = Suite(
    name="holisafe",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2506.04704; hf etri-vilab/holisafe-bench",
    licence="gated, terms of the card",
    published={TOTAL: 4_031},
    is_sure=False,
    judge="holisafe",
    max_new_tokens=512,
    note="Published sizes differ (4,031 and 4,163 questions). The average ASR is the plain mean of the four types.",
    folder="holisafe",
    aliases=("holisafe-bench",),
    layout="holisafe_bench.json and images/, or parquet files",
    download="hf download etri-vilab/holisafe-bench --repo-type dataset --local-dir DIR/holisafe  (log in first)",
    averages_groups=True,
)
