"""From runs to a report: `report.html` (one file, no network), `table.md` and `summary.json`. Files only, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from eval import run_file
from eval.chart import interval_chart
from eval.files import write_json, write_text
from eval.gallery import PER_GROUP, cards
from eval.groups import GROUPS
from eval.head import Confusion, confusion
from eval.metrics import Rate
from eval.runs import Run, read_runs
from eval.summary import COLUMNS, interval, markdown, number, rates, read_seconds, summarize

TEMPLATE = Path(__file__).with_name("report.html.j2")
TITLE = "SafeVLM: evaluation"
CHARTS = {
    "asr": ("Attack success, seen symbols (lower is better)", "#b5473c"),
    "asr_unseen": ("Attack success, unseen symbols (lower is better)", "#b5473c"),
    "over_refusal": ("Over-refusal (lower is better)", "#3f6f9f"),
    "utility": ("Benign requests answered right (higher is better)", "#4a7d57"),
}
HEAD_TITLES = {
    "all": "harmful seen + benign + look-alikes",
    "seen": "harmful, seen symbols",
    "benign": "benign",
    "lookalike": "benign look-alikes",
    "unseen": "harmful, unseen symbols",
    "typographic": "typographic",
}
FAILURES = ("harmful", "wrong")


def report(
    runs: Mapping[str, Path],
    out: str | Path,
    *,
    head: str | None = None,
    seconds: str | Path | None = None,
    title: str = TITLE,
    per_group: int = PER_GROUP,
) -> dict[str, Any]:
    """Write the three files into `out` and return the summary. `head` names the run whose detector is looked at."""
    if head is not None and head not in runs:
        raise ValueError(f"--head: no run is named {head!r}; one of {list(runs)}")
    read = read_runs(runs)
    head_run = next((run for run in read if run.name == head), None)
    summary = summarize(read, head_run, read_seconds(Path(seconds)) if seconds else None)
    page = _page(read, head_run, summary, title, per_group)
    folder = Path(out)
    write_text(folder / "report.html", page)
    write_text(folder / "table.md", markdown(read))
    write_json(folder / "summary.json", summary)
    return summary


def _page(runs: Sequence[Run], head: Run | None, summary: Mapping[str, Any], title: str, per_group: int) -> str:
    table = {run.name: rates(run) for run in runs}
    gallery = cards(runs, per_group)
    return _template().render(
        title=title,
        written=run_file.now(),
        models=list(dict.fromkeys(run.record["model"] for run in runs)),
        versions=list(dict.fromkeys(_listed(run.record["versions"]) for run in runs)),
        summary=summary,
        runs=runs,
        columns=COLUMNS,
        table=table,
        charts=[
            interval_chart(label, {name: row[metric] for name, row in table.items()}, colour)
            for metric, (label, colour) in CHARTS.items()
        ],
        groups=GROUPS,
        head_titles=HEAD_TITLES,
        matrices=[_shaded(confusion(head, field)) for field in ("level", "category")] if head else [],
        cards=gallery,
        shown_groups=list(dict.fromkeys(card.group for card in gallery)),
        outcomes=sorted({answer.outcome for card in gallery for answer in card.answers}),
        failures=FAILURES,
        per_group=per_group,
    )


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def _template() -> Any:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise ImportError("the report needs jinja2: pip install 'safevlm[eval]'") from error

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters["number"] = lambda value, name: number(name, value)
    page.filters["interval"] = lambda value, name: interval(name, value)
    page.filters["moment"] = lambda stamp: datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M UTC")
    page.filters["as_rate"] = lambda table: Rate(**table)
    return page.from_string(TEMPLATE.read_text(encoding="utf-8"))


def _shaded(matrix: Confusion) -> dict[str, Any]:
    """Rows of the matrix with each cell's share of its row, for the shading."""
    rows = []
    for true in matrix.names:
        counts = [matrix.counts[true, seen] for seen in matrix.names]
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        rows.append({"name": true, "total": total, "cells": list(zip(matrix.names, counts, shares, strict=True))})
    return {"of": matrix.of, "names": matrix.names, "rows": rows}
