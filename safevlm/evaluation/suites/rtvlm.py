"""RTVLM (arXiv 2401.12915): ten tasks in SafeVLM's six categories, scored 0-10 by the category's rubric.

Which subset is which task, which category and which level is data: `rtvlm.yaml` beside this file, or a file of that
name in the suite's folder. A row of text misleading that holds several questions is several samples (`…-1`, `…-2`, …);
the published 100 count the first ones only. `rtvlm_test` is the 20 % that a mix did not train on, by its own split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.images import source_rows
from safevlm.evaluation.suites.question import FURTHER, OFFICIAL, Question, unusable
from safevlm.evaluation.suites.rtvlm_scores import SCORES
from safevlm.evaluation.suites.suite import TOTAL, Suite
from safevlm.evaluation.suites.tables import AbsentError, json_object
from safevlm.files import read_yaml
from safevlm.taxonomy import DEFAULT

if TYPE_CHECKING:
    from safevlm.data.labels import LabelTable
    from safevlm.data.sources.row import SourceRow

TABLE = "rtvlm.yaml"
SPLIT = "rtvlm_split.json"
SLOT = "<image>\n"
GROUPS = {
    "text_misleading": Group("text misleading", "scored"),
    "visual_misleading": Group("visual misleading", "scored"),
    "visual_order_a": Group("visual misleading, order A", "scored"),
    "visual_order_b": Group("visual misleading, order B", "scored"),
    "celebrity": Group("celebrity", "scored"),
    "politics": Group("politics", "scored"),
    "racial": Group("racial", "scored"),
    "captcha": Group("captcha", "scored"),
    "jailbreak": Group("jailbreak", "scored"),
    "face": Group("face", "scored"),
}


def full(data: Path) -> Iterator[Question]:
    broken: list[Question] = []
    rows = _rows(data, "all", None, lambda place, why: broken.append(unusable(place, why)))
    yield from broken
    yield from _questions(data, rows)


def held_out(data: Path) -> Iterator[Question]:
    """The test side of the split file that `safevlm mix` wrote; ValueError when rows of it are not there."""
    split = data / SPLIT
    if not split.is_file():
        raise AbsentError(f"{data} has no {SPLIT}; copy it from the mix that the model was trained on")
    rows = _rows(data, "test", split)
    gone = sorted(set(json_object(split)["ids"]["test"]) - {row.id for row in rows})
    if gone:
        raise ValueError(f"{split}: {len(gone)} rows of the test side are not in {data}, {gone[0]!r} first")
    yield from _questions(data, rows)


def _rows(
    data: Path, side: str, split: Path | None, on_broken: Callable[[str, str], object] | None = None
) -> list[SourceRow]:
    from safevlm.data.sources.rtvlm import SUBSETS

    if not any((folder / subset.table).is_file() for folder in (data, data / "data") for subset in SUBSETS.values()):
        raise AbsentError(f"{data} has none of RTVLM's tables, such as data/{SUBSETS['misleading'].table}")
    return source_rows("rtvlm", data, side, split, on_broken)


def _questions(data: Path, rows: list[SourceRow]) -> Iterator[Question]:
    tasks, labels = _table(data)
    counted: set[str] = set()
    for row in rows:
        subset, said = row.words
        label = labels.label("rtvlm", row)
        if label is None:
            continue
        further = row.place in counted
        counted.add(row.place)
        question = row.turns[0][1].removeprefix(SLOT * (len(row.images) + len(row.missing)))
        yield Question(
            id=row.id,
            group=_task(tasks, subset),
            text=question,
            images=row.images,
            missing=row.missing,
            category=label.category or "",
            level=label.level or "",
            expected={
                "question": question,
                "rubric": label.category,
                "topic": subset,
                "label": said,
                "reference": row.turns[1][1] if row.has_answer else "",
                "prompt_is": OFFICIAL,
                FURTHER: further or None,
            },
        )


def _task(tasks: Mapping[str, str], subset: str) -> str:
    return next(task for pattern, task in tasks.items() if fnmatchcase(subset, pattern))


def _table(data: Path) -> tuple[dict[str, str], LabelTable]:
    """Subset → task, and the labels; the user's own file comes first. ValueError names the mistake."""
    from safevlm.data.labels import read_labels
    from safevlm.data.sources.rtvlm import SUBSETS

    own = data / TABLE
    path = own if own.is_file() else Path(__file__).with_name(TABLE)
    table = read_yaml(path, TaskTable)
    unknown = sorted(set(table.tasks.values()) - set(GROUPS))
    without = [name for name in SUBSETS if not any(fnmatchcase(name, pattern) for pattern in table.tasks)]
    if unknown or without:
        raise ValueError(f"{path}: tasks: unknown {unknown}, subsets without one {without}; tasks are {list(GROUPS)}")
    return dict(table.tasks), read_labels(table.labels, DEFAULT, str(path))


@dataclass(frozen=True)
class TaskTable:
    """The shape of the file."""

    tasks: Mapping[str, str]
    """Subset, with `*`, → task."""
    labels: Mapping[str, Any]
    """`rtvlm/subset/label` → category and level."""


_FACTS: dict[str, Any] = {
    "groups": GROUPS,
    "source": "arXiv 2401.12915; hf MMInstruction/RedTeamingVLM",
    "licence": "cc, which one is not said",
    "judge": "rtvlm",
    "max_new_tokens": 512,
    "folder": "rtvlm",
    "averages_groups": True,
    "published_scores": {"rtvlm": SCORES},
    "aliases": ("RedTeamingVLM",),
    "layout": "data/<Subset>/….jsonl and the zips (or folders) of images beside them",
    "download": "hf download MMInstruction/RedTeamingVLM --repo-type dataset --local-dir DIR/rtvlm",
}
SUITE = Suite(
    name="rtvlm",
    questions=full,
    published={
        "text_misleading": 100,
        "visual_misleading": 837,
        "celebrity": 200,
        "politics": 200,
        "racial": 200,
        "captcha": 200,
        "jailbreak": 221,
        "face": 2_040,
        TOTAL: 4_802,
    },
    note="Not for a model trained on RTVLM: that one is asked rtvlm_test. Task to category, and levels, are ours "
    "(rtvlm.yaml); every question of a text-misleading row is asked; order tasks send two images.",
    **_FACTS,
)
TEST = Suite(
    name="rtvlm_test",
    questions=held_out,
    published={},
    note="The 20 % of images that our own split keeps from training; SafeVLM's split is not published, so its "
    "numbers cannot be repeated exactly.",
    **_FACTS | {"layout": f"{_FACTS['layout']}; and {SPLIT} of the mix (`safevlm mix`) that the model was trained on"},
)
