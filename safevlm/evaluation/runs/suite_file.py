"""`suite.json`: what judge, report, compare and grid need to know of a suite that is not in our table.

A run of the user's own questions (`--suite my.yaml`) or of a plug-in's suite carries its groups and facts along, so
that reading its results needs neither the YAML nor the plug-in, and runs no code that a folder names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safevlm import files
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.files import Row, write_json
from safevlm.evaluation.suites import SUITES, Suite
from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.headline import DetectorSet, Headline, PublishedTable
from safevlm.evaluation.suites.question import Question
from safevlm.files import FileError

FILE = "suite.json"
PARTS: dict[str, Any] = {"groups": Group, "detector_sets": DetectorSet, "published_scores": PublishedTable}
"""Fields of a suite that are tables of rows."""
KEPT = (
    "name",
    "source",
    "licence",
    "published",
    "judge",
    "max_new_tokens",
    "note",
    "averages_groups",
    "timed_groups",
    "is_synthetic",
    "digest",
)


def write(folder: Path, suite: Suite) -> None:
    """Beside `run.json`; nothing for a suite of our table."""
    if suite.name in SUITES.ours:
        return
    table: Row = {name: getattr(suite, name) for name in KEPT}
    table |= {name: {key: asdict(row) for key, row in getattr(suite, name).items()} for name in PARTS}
    write_json(folder / FILE, table | {"headlines": [asdict(row) for row in suite.headlines]})


def suite_of_run(folder: Path, rows: Sequence[Row] = ()) -> Suite:
    """The suite of a run's folder; `rows` are its replies, for a folder without `run.json`.

    ValueError: the folder names a suite that is neither ours nor described in it.
    """
    if (folder / FILE).is_file():
        return _read(folder / FILE)
    record = run_file.read(folder)
    name = str(record.get("suite") or (rows[0]["suite"] if rows else ""))
    if name not in SUITES.ours:
        raise ValueError(f"{folder}: suite {name!r} is none of {list(SUITES.ours)}, and no {FILE} describes it")
    return SUITES.ours[name]


@dataclass(frozen=True)
class SuiteRecord:
    """The shape of the file."""

    name: str
    source: str
    licence: str
    published: Mapping[str, int]
    judge: str
    max_new_tokens: int
    note: str
    averages_groups: bool
    timed_groups: tuple[str, ...]
    is_synthetic: bool
    digest: str
    groups: Mapping[str, Group]
    detector_sets: Mapping[str, DetectorSet]
    published_scores: Mapping[str, PublishedTable]
    headlines: tuple[Headline, ...]


def _read(file: Path) -> Suite:
    try:
        return Suite(questions=_no_questions, **vars(files.read_json(file, SuiteRecord)))
    except (FileError, ValueError) as error:
        raise ValueError(f"{error}; it does not describe a suite: ask again into another folder") from error


def _no_questions(data: Path) -> Iterable[Question]:
    raise ValueError("the questions of this suite are not here; name it by --suite")
