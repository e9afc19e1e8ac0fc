"""How fast several trainings of stage 1 were, and what their heads learned: `bench_stage1.json` from finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from safevlm.data.made_by import write_result
from safevlm.evaluation.runs.files import read_json

FILE = "bench_stage1.json"
HELD_OUT = "held-out"
"""Name of the set of images in the rows' analysis."""


def collect(folder: Path, rows: Sequence[str], fast: str, slow: str, made_by: str = "") -> dict[str, Any]:
    """Writes `FOLDER/bench_stage1.json` and returns what is in it.

    ValueError: `fast` or `slow` is no row, or the rows differ in updates or batch size. FileNotFoundError: a row that
    is not trained or not analysed.
    """
    for name in (fast, slow):
        if name not in rows:
            raise ValueError(f"{name!r} is none of the rows {list(rows)}")
    setups = {name: _setup(folder / name) for name in rows}
    if len(set(setups.values())) > 1:
        raise ValueError(f"{folder}: the rows differ in (updates, batch): {setups}; train them alike")
    updates, batch = next(iter(setups.values()))
    found = {name: _row(folder / name) for name in rows}
    table = {
        "command": made_by,
        "updates": updates,
        "batch": batch,
        "rows": found,
        "times_faster": found[fast]["samples_per_second"] / found[slow]["samples_per_second"],
        "fast": fast,
        "slow": slow,
    }
    write_result(folder / FILE, table, {name: folder / name / "final" for name in rows})
    return table


def told(table: Mapping[str, Any]) -> list[str]:
    """The table for a terminal."""
    rows = [
        f"{name:16} {row['samples_per_second']:8.1f} samples/s  {row['seconds']:7.1f} s"
        for name, row in table["rows"].items()
    ]
    return [*rows, f"{table['fast']} is {table['times_faster']:.1f} times faster than {table['slow']}"]


def _setup(run: Path) -> tuple[int, int]:
    """Updates, and records per update."""
    recipe = yaml.safe_load((run / "final" / "recipe.yaml").read_text(encoding="utf-8"))
    return int(_end(run)["step"]), int(recipe["optim"]["batch_size"])


def _row(run: Path) -> dict[str, Any]:
    end = _end(run)
    return {
        "samples_per_second": end["train_samples_per_second"],
        "seconds": end["train_runtime"],
        "head": read_json(run / "analysis" / "summary.json")["sets"][HELD_OUT],
    }


def _end(run: Path) -> dict[str, Any]:
    """The last line of the trainer's log, which has the speed."""
    end: dict[str, Any] = read_json(run / "final" / "trainer_state.json")["log_history"][-1]
    return end
