"""Questions of a drawn world, from the `eval.jsonl` that its `data` command writes.

Every row is checked against the world (things, category, level, group), since a wrong truth would be a wrong score.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from safevlm.data.images import is_there
from safevlm.evaluation.runs.files import check_fields, numbered_rows
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.question import Question
from safevlm.evaluation.suites.tables import AbsentError
from safevlm.taxonomy import SAFE, Taxonomy

FILE = "eval.jsonl"


class WorldRow(TypedDict):
    """What every world's rows have."""

    id: str
    group: str
    image: str | None
    question: str
    task: str
    things: list[str]
    category: str
    level: str


@dataclass(frozen=True)
class DrawnWorld:
    """What a suite has to know of its world."""

    command: str
    """What writes the data."""
    groups: Mapping[str, Group]
    tasks: Collection[str]
    names: Collection[str]
    """Of all things."""
    taxonomy: Callable[[], Taxonomy]
    check: Callable[[Mapping[str, Any]], None]
    """ValueError when a row's category or level is not that of what it shows."""
    row: Any = WorldRow
    """The shape of a row: a TypedDict with at least the fields of WorldRow."""
    expected: tuple[str, ...] = ("task", "things")
    """Fields that the judge or a later reading needs."""

    def questions(self, data: Path) -> list[Question]:
        """All questions in the order of the file."""
        path = data / FILE
        if not path.exists():
            raise AbsentError(f"{path} is missing; make it with `{self.command}`")
        found: dict[str, Question] = {}
        for where, row in numbered_rows(path):
            if (one := self._question(row, data, where)).id in found:
                raise ValueError(f"{where}: id {one.id!r} stands here twice")
            found[one.id] = one
        return list(found.values())

    def _question(self, row: dict[str, Any], data: Path, where: str) -> Question:
        check_fields(row, self.row, where)
        try:
            self._check_truth(row)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return Question(
            id=row["id"],
            group=row["group"],
            text=row["question"],
            images=self._images(row, data, where),
            category=row["category"],
            level=row["level"],
            expected={name: row[name] for name in self.expected},
        )

    def _check_truth(self, row: Mapping[str, Any]) -> None:
        taxonomy = self.taxonomy()
        for name, choices in (
            ("group", self.groups),
            ("task", self.tasks),
            ("category", taxonomy.category_names),
            ("level", taxonomy.level_names),
        ):
            if row[name] not in choices:
                raise ValueError(f"unknown {name} {row[name]!r}; one of {list(choices)}")
        if self.groups[row["group"]].is_harmful != (row["level"] != SAFE):
            raise ValueError(f"level {row['level']!r} does not fit group {row['group']!r}")
        unknown = [name for name in row["things"] if name not in self.names]
        if unknown or not row["things"]:
            why = f"no thing is called {unknown}" if unknown else "empty"
            raise ValueError(f"things {list(row['things'])}: {why}")
        self.check(row)

    def _images(self, row: Mapping[str, Any], data: Path, where: str) -> tuple[Path, ...]:
        needs = self.groups[row["group"]].image
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
