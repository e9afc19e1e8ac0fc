"""What a suite is: how its questions are loaded, and everything that other rooms need to know of it.

Metrics, reports and the grid read these fields and never compare a suite's name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safevlm.evaluation.suites.groups import Group, Side
from safevlm.evaluation.suites.headline import DetectorSet, Headline, PublishedTable
from safevlm.evaluation.suites.question import Question, as_samples
from safevlm.types import Sample

TOTAL = "total"
"""Key of `published` for all groups together, where the parts are not published."""


@dataclass(frozen=True)
class Suite:
    name: str
    questions: Callable[[Path], Iterable[Question]]
    """All rows in the order of the files; the argument is the suite's own folder. Images may still be in archives."""
    groups: Mapping[str, Group]
    source: str
    licence: str
    published: Mapping[str, int]
    """Rows per group, or TOTAL, as published; fewer is an error, unless the numbers are uncertain."""
    judge: str
    """Name of the official judge, or of ours where there is none."""
    max_new_tokens: int
    """Longest answer, unless the command says otherwise."""
    note: str = ""
    """What has to stand beside every number of this suite."""
    folder: str = ""
    """Name of the suite's folder in a folder of suites; empty: the folder that is given."""
    layout: str = ""
    """The files that are looked for."""
    download: str = ""
    """The command that gets them."""
    is_sure: bool = True
    """Whether `published` was counted in the published files; otherwise a difference is reported and no error."""
    aliases: tuple[str, ...] = ()
    """Other names of the folder, as the downloads have them."""
    averages_groups: bool = False
    """The authors average groups plainly, whatever their sizes: reports have that mean as a column of its own."""
    headlines: tuple[Headline, ...] = ()
    """Columns of the suite's own table, used when its own judge scored; empty: every side as a whole."""
    detector_sets: Mapping[str, DetectorSet] = field(default_factory=dict)
    """What a detector's accuracy is reported on, the headline first; empty: all groups, then each one alone."""
    published_scores: Mapping[str, PublishedTable] = field(default_factory=dict)
    """Scores of papers by name of the judge; a score of another kind of judge is no neighbour."""
    timed_groups: tuple[str, ...] = ()
    """Benign groups whose requests are timed; empty: all benign groups."""
    is_synthetic: bool = False
    """Invented content with exact truth: reports fold nothing away, and `eval/all.sh` leaves it out."""
    temperature: float = 0.0
    """Of sampling; 0: greedy. Questions that are asked several times (`question.REPEAT`) need one."""
    digest: str = ""
    """Of the file that describes a suite of the user's own; empty for a suite in Python."""

    def load(self, folder: Path) -> list[Sample]:
        """Every row as a sample, its images as files; also rows whose image is missing (`question.MISSING`)."""
        return as_samples(self.name, folder, self.questions(folder))

    def check_group(self, name: object, where: str) -> str:
        """The group's name; ValueError, beginning with `where`, when the suite has no such group."""
        if name not in self.groups:
            raise ValueError(f"{where}: unknown group {name!r}; one of {list(self.groups)}")
        return str(name)

    def side_of(self, group: str) -> Side:
        """harmful, benign or scored; ValueError when the suite has no such group."""
        return self.groups[self.check_group(group, f"suite {self.name}")].side

    def groups_on(self, side: Side) -> tuple[str, ...]:
        """Names of the groups on one side."""
        return tuple(name for name, group in self.groups.items() if group.side == side)

    def in_order(self, names: Iterable[str]) -> list[str]:
        """Distinct group names in the order of the suite's table."""
        present = set(names)
        return [name for name in self.groups if name in present]
