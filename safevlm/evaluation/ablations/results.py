"""`ablations.json` and `ablations.md` from the judged runs of a table (`safevlm.evaluation.ablations.table`). No model.

The trap is a row that is missing: it is told, never left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safevlm.data.atomic_write import write_text
from safevlm.data.made_by import write_result
from safevlm.evaluation.ablations.table import AblationStep, AblationTable
from safevlm.evaluation.metrics.cells import interval, number, unscored
from safevlm.evaluation.metrics.detector import MAIN, head_accuracy
from safevlm.evaluation.metrics.measures import Unit
from safevlm.evaluation.metrics.rates import NO_RATE, Rate
from safevlm.evaluation.report.section import LATENCY, ReportColumn, ReportSection, sections_of
from safevlm.evaluation.runs.files import read_json
from safevlm.evaluation.runs.run import Run, read_run, run_inputs
from safevlm.evaluation.runs.run_file import FILE

SCHEMA = 1
JSON, MARKDOWN = "ablations.json", "ablations.md"
READ_OUTS = ("category", "level")
LEGEND = (
    "95 % intervals (Wilson). ↓ lower is better. Several numbers in a cell: one per seed of training, which varies the "
    "new weights, the order of the records and, where `data.clean` draws some, which ones; the questions are the same "
    "and decoding is greedy. Behind `unscored`: the value at worst, with all of it counted as 0, and as 1."
)
Numbers = Mapping[str, Mapping[str, Any]]
"""What a row gave, by seed."""


def ablations(table: AblationTable, steps: Sequence[AblationStep], suite: str, out: Path) -> list[str]:
    """Writes both files; returns `ROW@SEED` of what has no scores yet. ValueError: nothing has, or judges differ."""
    there = [step for step in steps if (step.run(suite) / FILE).exists()]
    found = sections_of([read_run(step.name, step.run(suite)) for step in there])
    if len(found) != 1:
        raise ValueError(f"{out}: the rows were judged in {len(found)} ways; a table needs one")
    numbers = {
        name: _numbers(found[0], [step for step in there if step.row == (row.same or name)])
        for name, row in table.rows.items()
    }
    missing = [step.name for step in steps if step not in there]
    write_result(
        out / JSON,
        {
            "schema": SCHEMA,
            "suite": suite,
            "judge": found[0].judge.name,
            "missing": missing,
            "sections": dict(table.sections),
            "rows": {name: asdict(row) | {"seeds": numbers[name]} for name, row in table.rows.items()},
        },
        run_inputs(found[0].runs),
    )
    write_text(out / MARKDOWN, markdown(table, found[0], numbers))
    return missing


def markdown(table: AblationTable, section: ReportSection, numbers: Mapping[str, Numbers]) -> str:
    """A table for every heading."""
    columns = [column for column in section.columns if column.of and column.name != LATENCY]
    parts = []
    for heading, names in table.sections.items():
        titles = [heading, *(column.title for column in columns), *(f"head: {name} ↑" for name in READ_OUTS)]
        rows = [[name.replace("_", " "), *_cells(columns, numbers[name])] for name in names]
        parts += [_line(titles), "|" + "---|" * len(titles), *map(_line, rows), ""]
    return "\n".join([*parts, f"{LEGEND} Requests: {_asked(columns, numbers)}."]) + "\n"


def _numbers(section: ReportSection, steps: Sequence[AblationStep]) -> dict[str, Any]:
    runs = {run.name: run for run in section.runs}
    return {str(step.seed): _measured(section, step, runs[step.name]) for step in steps}


def _measured(section: ReportSection, step: AblationStep, run: Run) -> dict[str, Any]:
    rates = {name: asdict(rate) for name, rate in section.table[run.name].items() if name != LATENCY}
    return rates | {
        "head": head_accuracy(run)["sets"] if run.has_detector else {},
        "training": _training(Path(step.model) / "final") if step.recipe else {},
        "commands": [command for command in (step.command, run.record["command"]) if command],
    }


def _training(final: Path) -> dict[str, Any]:
    state, record = read_json(final / "trainer_state.json"), read_json(final / "run.json")
    return {
        "updates": state["global_step"],
        "records": record["records"]["all"],
        "parameters": record["trained"]["parameters"],
    }


def _cells(columns: Sequence[ReportColumn], numbers: Numbers) -> list[str]:
    if not numbers:
        return ["missing", *["–"] * (len(columns) + len(READ_OUTS) - 1)]
    return [
        *(_cell(column.unit, [Rate(**one[column.name]) for one in numbers.values()]) for column in columns),
        *(_cell("share", [_head(one["head"], name) for one in numbers.values()]) for name in READ_OUTS),
    ]


def _head(sets: Mapping[str, Any], name: str) -> Rate:
    return Rate(**sets[MAIN][name]) if sets else NO_RATE


def _cell(unit: Unit, rates: Sequence[Rate]) -> str:
    """`1.0 % [0.2, 3.7] / 2.0 % [0.7, 5.7] (1 unscored)`."""
    return " / ".join(_short(unit, rate) for rate in rates)


def _short(unit: Unit, rate: Rate) -> str:
    beside = f" ({unscored(unit, rate)})" if rate.unscored else ""
    return f"–{beside}" if rate.value is None else f"{number(unit, rate.value)} {interval(unit, rate)}{beside}"


def _asked(columns: Sequence[ReportColumn], numbers: Mapping[str, Numbers]) -> str:
    """Requests behind each column, scored or not."""
    told = [one for seeds in numbers.values() for one in seeds.values()]
    counts = {
        column.title[:-2]: {one[column.name]["n"] + one[column.name]["unscored"] for one in told} for column in columns
    }
    return ", ".join(f"{title} {' or '.join(map(str, sorted(found)))}" for title, found in counts.items())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
