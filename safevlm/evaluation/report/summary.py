"""`summary.json`: the numbers of several runs by suite and row, with who judged them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safevlm.evaluation.judges.provenance import outcomes
from safevlm.evaluation.metrics.detector import head_accuracy
from safevlm.evaluation.metrics.rates import by_group
from safevlm.evaluation.report.section import ReportSection, remarks, wordings
from safevlm.evaluation.runs.files import read_json
from safevlm.evaluation.runs.run import Run

SCHEMA = 1
RUN_FIELDS = (
    "suite",
    "model",
    "defense",
    "policy",
    "base",
    "perturb",
    "max_new_tokens",
    "started",
    "n",
    "dtype",
    "versions",
    "digests",
)
JUDGE_FIELDS = (
    "about",
    "model",
    "served_as",
    "place",
    "prompt_is",
    "prompt_sha256",
    "decoding",
    "votes",
    "sees_image",
    "fingerprint",
    "rules_sha256",
)


def summarize(
    runs: Sequence[Run],
    found: Sequence[ReportSection],
    head: Run | None = None,
    seconds: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The table of `summary.json`; `found` are the sections of the runs."""
    suites: dict[str, dict[str, Any]] = {}
    for section in found:
        for run in section.runs:
            suites.setdefault(section.suite.name, {})[run.name] = _row(section, run)
    names = [run.name for run in runs]
    return {
        "schema": SCHEMA,
        "model": (head or runs[-1]).record["model"],
        "seconds": dict(seconds or {}),
        "head": head_accuracy(head) if head else {},
        "suites": suites,
        "runs": {
            run.name if names.count(run.name) == 1 else f"{run.name} ({run.record['suite']})": _facts(run)
            for run in runs
        },
        "remarks": {
            f"{section.suite.name} · {section.judge.name}": said for section in found if (said := remarks(section))
        },
    }


def read_seconds(path: Path) -> dict[str, float]:
    """Wall times by step, from a JSON object of numbers."""
    return read_json(path, dict[str, float])


def _row(section: ReportSection, run: Run) -> dict[str, Any]:
    """The columns' rates, then what they are made of; `sides` names those that the suite has."""
    table: dict[str, Any] = {name: asdict(value) for name, value in section.table[run.name].items()}
    return table | {
        "groups": by_group(list(run.scores.values()), section.suite, section.judge.counts),
        "categories": _categories(section, run),
        "sides": sorted({group.side for group in section.suite.groups.values()}),
        "judge": {"name": section.judge.name, "outcomes": outcomes(run)}
        | {name: section.judge.facts[name] for name in JUDGE_FIELDS if name in section.judge.facts},
        "wordings": wordings(section),
    }


def _categories(section: ReportSection, run: Run) -> dict[str, Any]:
    return {
        side: {name: {key: asdict(value) for key, value in rates[run.name].items()} for name, rates in table.items()}
        for side, table in section.cuts["category"].items()
    }


def _facts(run: Run) -> dict[str, Any]:
    facts = {name: run.record.get(name) for name in RUN_FIELDS}
    return facts | {"replies": len(run.replies), "finished": run.is_finished}
