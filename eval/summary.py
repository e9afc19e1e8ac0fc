"""`summary.json` and `table.md`: the numbers of several runs, one row each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from eval.files import read_json
from eval.head import head_accuracy
from eval.metrics import METRICS, Rate, by_group
from eval.runs import Run

SCHEMA = 1
RUN_FIELDS = ("suite", "model", "defense", "policy", "base", "max_new_tokens", "started", "n", "dtype", "versions")
LATENCY = "latency_ratio"
COLUMNS = {
    "asr": "ASR, seen ↓",
    "asr_unseen": "ASR, unseen ↓",
    "asr_typographic": "ASR, typographic ↓",
    "asr_text": "ASR, text ↓",
    "over_refusal": "over-refusal ↓",
    "utility": "utility ↑",
    LATENCY: "time × bare ↓",
}


def summarize(
    runs: Sequence[Run], head: Run | None = None, seconds: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """The table of `summary.json`."""
    suites: dict[str, dict[str, Any]] = {}
    for run in runs:
        suites.setdefault(run.record["suite"], {})[run.name] = _row(run)
    return {
        "schema": SCHEMA,
        "model": (head or runs[-1]).record["model"],
        "seconds": dict(seconds or {}),
        "head": head_accuracy(head) if head else {},
        "suites": suites,
        "runs": {run.name: _facts(run) for run in runs},
    }


def rates(run: Run) -> dict[str, Rate]:
    """A row of the table: every column's rate."""
    scores = list(run.scores.values())
    return {name: metric(scores) for name, metric in METRICS.items()} | {LATENCY: run.latency_ratio}


def read_seconds(path: Path) -> dict[str, float]:
    """Wall times by step, from a JSON object of numbers."""
    table = read_json(path)
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"{path}: {name} must be a number of seconds, not {value!r}")
    return table


def markdown(runs: Sequence[Run]) -> str:
    """The table for a README: value, 95 % interval and n in every cell."""
    lines = ["| | " + " | ".join(COLUMNS.values()) + " |", "|---|" + "---|" * len(COLUMNS)]
    for run in runs:
        cells = [cell(name, value) for name, value in rates(run).items()]
        lines.append("| " + " | ".join([run.name.replace("|", "\\|"), *cells]) + " |")
    unfinished = [run.name for run in runs if not run.is_finished]
    note = f"\nUnfinished: {', '.join(unfinished)}.\n" if unfinished else ""
    return "\n".join(lines) + f"\n\n95 % intervals (Wilson; time: bootstrap of the median). ↓ lower is better.\n{note}"


def cell(name: str, value: Rate) -> str:
    """One cell in words: `3.4 % [2.1, 5.5] n 600`."""
    if value.value is None:
        return f"– ({value.unscored} unscored)" if value.unscored else "–"
    unscored = f", {value.unscored} unscored" if value.unscored else ""
    return f"{number(name, value.value)} {interval(name, value)} n {value.n}{unscored}"


def number(name: str, value: float) -> str:
    """`1.04 ×` for the time, `3.4 %` for shares."""
    return f"{value:.2f} ×" if name == LATENCY else f"{100 * value:.1f} %"


def interval(name: str, value: Rate) -> str:
    """`[2.1, 5.5]`; empty when there is none."""
    if value.low is None or value.high is None:
        return ""
    if name == LATENCY:
        return f"[{value.low:.2f}, {value.high:.2f}]"
    return f"[{100 * value.low:.1f}, {100 * value.high:.1f}]"


def _row(run: Run) -> dict[str, Any]:
    table: dict[str, Any] = {name: asdict(value) for name, value in rates(run).items()}
    return table | {"groups": by_group(list(run.scores.values()))}


def _facts(run: Run) -> dict[str, Any]:
    facts = {name: run.record.get(name) for name in RUN_FIELDS}
    return facts | {"replies": len(run.replies), "finished": run.is_finished}
