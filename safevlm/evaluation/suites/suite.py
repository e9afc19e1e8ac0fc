"""What a suite is: how its questions are loaded, where they come from, and what a reviewer has to know of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safevlm.evaluation.suites.groups import Group
from safevlm.evaluation.suites.question import Question, as_samples
from safevlm.types import Sample

TOTAL = "total"
"""Key of `published` for all groups together, where the parts are not published."""


@dataclass(frozen=True)
class Suite:
    name: str
    questions: Callable[[Path], Iterable[Question]]
    """All rows in the order of the files; the folder is the suite's own. Images may still be in archives."""
    groups: Mapping[str, Group]
    source: str
    licence: str
    published: Mapping[str, int]
    """Rows per group, or TOTAL, as published; fewer is an error, unless the numbers are uncertain."""
    judge: str
    """The official judge, or ours where there is none."""
    max_new_tokens: int
    note: str = ""
    """What has to stand beside every number of this suite."""
    folder: str = ""
    """Name of the suite's folder in a folder of suites."""
    layout: str = ""
    """The files that are looked for."""
    download: str = ""
    """The command that gets them."""
    is_sure: bool = True
    """Whether `published` was counted in the published files; otherwise both numbers are only told."""
    aliases: tuple[str, ...] = ()
    """Other names of the folder, as the downloads have them."""

    def load(self, folder: Path) -> list[Sample]:
        """Every row as a sample, its images as files; also rows whose image is missing (`question.MISSING`)."""
        return as_samples(self.name, folder, self.questions(folder))
