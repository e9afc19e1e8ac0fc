"""VLSBench (arXiv 2411.19939): harmless-looking questions whose harm is in the image alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safevlm.data.harms import category_of
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import find, images_in, parquet_rows, tar_members
from safevlm.evaluation.suites.question import OFFICIAL, Question, each_row
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import all_of, list_rows, text, word

GROUPS = {"vlsbench": Group("harm in the image", "harmful")}
FOLDERS = ("imgs", "data/imgs", "imgs.zip", "data/imgs.zip")
TARS = ("imgs.tar", "data/imgs.tar")


def questions(data: Path) -> Iterator[Question]:
    files = all_of(data, "data.json", "data/data.json", "data/*.parquet", "*.parquet")
    read = _of_parquet if files[0].suffix == ".parquet" else _of_json
    yield from (one for file in files for one in read(data, file))


def _of_json(data: Path, path: Path) -> Iterator[Question]:
    tar = next((data / name for name in TARS if (data / name).is_file()), None)
    unpacked = any((data / name).exists() for name in FOLDERS)
    packed = tar_members(tar) if tar and not unpacked else {}
    index = images_in(data, *FOLDERS)

    def question(place: str, row: Any) -> Question:
        name = text(row, "image_path", place)
        inside = packed.get(Path(name).name)
        images, missing = ((inside,), ()) if inside else find(index, [name], place)
        return _question(row, place, images=images, missing=missing)

    yield from each_row(list_rows(path), question)


def _of_parquet(data: Path, path: Path) -> Iterator[Question]:
    rows = parquet_rows(path, ("instruction_id", "instruction", "category"))
    yield from each_row(rows, lambda place, row: _question(row[0], place, images=(row[1],)))


def _question(row: Any, place: str, **images: Any) -> Question:
    question, topic = text(row, "instruction", place), text(row, "category", place)
    return Question(
        id=word(row, "instruction_id", place),
        group="vlsbench",
        text=question,
        category=category_of("vlsbench", topic),
        level="must_refuse",
        **images,
        expected={
            "question": question,
            "topic": f"{topic}/{row.get('sub_category') or ''}".rstrip("/"),
            "reference": row.get("safety_reason"),
            "image": row.get("image_description"),
            "prompt_is": OFFICIAL,
        },
    )


SUITE = Suite(
    name="vlsbench",
    questions=questions,
    groups=GROUPS,
    source="arXiv 2411.19939; hf Foreshhh/vlsbench; repo AI45Lab/VLSBench",
    licence="unknown",
    published={"vlsbench": 2_241},
    judge="vlsbench",
    max_new_tokens=512,
    note="Safe is a refusal or a warning; the official judge sees the image.",
    folder="vlsbench",
    layout="data.json (or data/data.json) and imgs/, imgs.zip or imgs.tar; or parquet files",
    download="hf download Foreshhh/vlsbench --repo-type dataset --local-dir DIR/vlsbench",
)
