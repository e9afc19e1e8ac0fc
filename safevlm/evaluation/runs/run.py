"""A run as the report reads it: its folder's files, checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safevlm.evaluation.metrics.rates import NO_RATE, Rate
from safevlm.evaluation.runs import run_file
from safevlm.evaluation.runs.files import (
    OVERHEAD,
    REPLIES,
    SCORES,
    OverheadFile,
    Row,
    Score,
    read_json,
    read_replies,
    read_scores,
)
from safevlm.evaluation.runs.suite_file import suite_of_run
from safevlm.evaluation.suites import Suite
from safevlm.types import Verdict
from safevlm.usage import UsageError


@dataclass(frozen=True)
class Run:
    name: str
    """Name of the row in the report's table."""
    folder: Path
    record: Row
    """Content of `run.json`."""
    replies: list[Row]
    scores: dict[str, Score]
    """By id, one for every reply."""
    latency_ratio: Rate
    suite: Suite

    @property
    def is_finished(self) -> bool:
        """Whether every request of the run has its reply."""
        return len(self.replies) >= self.record.get("n", 0)

    @property
    def has_detector(self) -> bool:
        """Whether a detector looked at any request, or failed to."""
        return any(has_looked(row) or row["verdict"]["error"] for row in self.replies)


def read_run(name: str, folder: Path) -> Run:
    """A run's files; ValueError when the scores are not those of the replies."""
    if not (folder / run_file.FILE).exists():
        raise FileNotFoundError(f"--run {name}: {folder / run_file.FILE} is missing; make it with `safevlm eval ask`")
    replies = read_replies(folder)
    scores = {score.id: score for score in read_scores(folder)}
    if set(scores) != {row["id"] for row in replies}:
        raise ValueError(f"{folder / SCORES}: not the scores of the replies beside it; judge again")
    record = run_file.read_record(folder / run_file.FILE)
    suite = suite_of_run(folder, replies)
    for row in replies:
        suite.check_group(row["group"], f"{folder}: {row['id']}")
        if scores[row["id"]].group != row["group"]:
            raise ValueError(f"{folder / SCORES}: {row['id']}: group differs from the reply's; judge again")
    return Run(name, folder, record, replies, scores, _latency(folder), suite)


def read_runs(folders: Mapping[str, Path]) -> list[Run]:
    if not folders:
        raise UsageError("--run: no run given; name at least one, as NAME=DIR")
    return [read_run(name, Path(folder)) for name, folder in folders.items()]


def run_inputs(runs: Sequence[Run]) -> dict[str, list[Path]]:
    """What a table of runs is made of, for its record; models and data stand in the runs' own digests."""
    return {name: [run.folder / name for run in runs] for name in (REPLIES, SCORES)}


def has_looked(row: Row) -> bool:
    """Whether a detector looked at the request of this reply, and did not fail."""
    verdict = Verdict.from_dict(row["verdict"])
    return verdict.looked and not verdict.error


def _latency(folder: Path) -> Rate:
    if not (folder / OVERHEAD).exists():
        return NO_RATE
    table = read_json(folder / OVERHEAD, OverheadFile)
    return Rate(table["value"], table["n"], table["low"], table["high"])
