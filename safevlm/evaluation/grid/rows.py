"""The runs of a grid: `OUT/runs/ROW/SEED/ATTACK`, each a folder as `ask`, `judge` and `overhead` leave it.

ROW is a line of the grid; SEED is `once` where nothing in the row was trained, else the name of the training's folder;
ATTACK is for people, as `run.json` says how images were changed. `OUT/rows.tsv` says what became of every row
(`ROW SEED STATUS WHY`; the last line counts), so that one that broke is told and not left out in silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safevlm.evaluation.judges.provenance import provenance_of
from safevlm.evaluation.runs.files import OVERHEAD, OverheadFile, read_json
from safevlm.evaluation.runs.run import Run, read_run
from safevlm.files import read_text

RUNS, STANDINGS = "runs", "rows.tsv"
ONCE = "once"
AS_THEY_ARE = ""
"""Key of the run whose images were not changed."""


@dataclass(frozen=True)
class Trial:
    """A row with one seed."""

    seed: str
    runs: Mapping[str, Run]
    """By perturbation, as `run.json` names it."""
    overhead: Mapping[str, Any]
    """`overhead.json`; empty where it was not timed."""


@dataclass(frozen=True)
class GridRow:
    name: str
    trials: tuple[Trial, ...]

    @property
    def record(self) -> Mapping[str, Any]:
        """What was asked, of the first run."""
        return next(iter(self.trials[0].runs.values())).record

    def trial(self, seed: str) -> Trial:
        """The one with this seed; of a row without seeds, the only one."""
        return next((one for one in self.trials if one.seed == seed), self.trials[0])


@dataclass(frozen=True)
class GridStanding:
    row: str
    seed: str
    status: str
    """ran, skipped or failed."""
    why: str


def read_rows(out: Path) -> tuple[list[GridRow], list[str]]:
    """Rows in the order of `rows.tsv`, then by name; and what is wrong with runs that are left out or unfinished.

    ValueError: nothing is there, or runs of several suites or judges, which are no one table.
    """
    found: dict[str, dict[str, dict[str, Run]]] = {}
    problems = []
    for file in sorted((out / RUNS).glob("*/*/*/run.json")):
        folder = file.parent
        row, seed = folder.parts[-3:-1]
        try:
            run = read_run(row, folder)
        except (ValueError, OSError) as error:
            problems.append(f"{row} ({seed}): {' '.join(str(error).split())}")
            continue
        if not run.is_finished:
            problems.append(f"{row} ({seed}): {folder.name}: {len(run.replies)} of {run.record['n']} requests answered")
        runs = found.setdefault(row, {}).setdefault(seed, {})
        if runs.setdefault(run.record.get("perturb") or AS_THEY_ARE, run) is not run:
            raise ValueError(f"{folder.parent}: two runs there are of the same images; remove one")
    if not found:
        raise ValueError(f"{out / RUNS}: no judged run; make some with eval/compare_defenses.sh")
    order = list(dict.fromkeys([*(one.row for one in read_standings(out)), *sorted(found)]))
    rows = [_row(name, found[name]) for name in order if name in found]
    _check_one_table(rows)
    return rows, problems


def read_standings(out: Path) -> list[GridStanding]:
    """The last line of every row and seed, in the order in which they first came."""
    path = out / STANDINGS
    last: dict[tuple[str, str], GridStanding] = {}
    for number, line in enumerate(read_text(path).splitlines() if path.exists() else [], start=1):
        cells = line.split("\t")
        if len(cells) != 4:
            raise ValueError(f"{path}:{number}: a line has ROW, SEED, STATUS and WHY, parted by tabs; remove it")
        last[cells[0], cells[1]] = GridStanding(*cells)
    return list(last.values())


def _row(name: str, seeds: Mapping[str, Mapping[str, Run]]) -> GridRow:
    return GridRow(name, tuple(Trial(seed, runs, _overhead(runs)) for seed, runs in seeds.items()))


def _overhead(runs: Mapping[str, Run]) -> Mapping[str, Any]:
    run = runs.get(AS_THEY_ARE)
    return read_json(run.folder / OVERHEAD, OverheadFile) if run and (run.folder / OVERHEAD).exists() else {}


def _check_one_table(rows: Sequence[GridRow]) -> None:
    runs = [run for row in rows for trial in row.trials for run in trial.runs.values()]
    for what, values in (
        ("suites", {run.record["suite"] for run in runs}),
        ("judges, or judged in several ways", {provenance_of(run).key for run in runs}),
    ):
        if len(values) > 1:
            raise ValueError(f"runs of several {what} are no one table: {sorted(values)}; give each its own --out")
