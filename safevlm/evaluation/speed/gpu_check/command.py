"""The command line of the check: runs the steps, and prints and writes the table after each."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safevlm.command_line import CommandParser, number
from safevlm.data import row_log
from safevlm.data.atomic_write import write_text
from safevlm.evaluation.speed.gpu_check import plan, rows, supervisor, table

TABLE = "table.md"
SHAPES = ("7b", "13b", "tiny")
SECONDS = 525.0
"""The default budget: a call of nine minutes, less what starts and ends it."""


def main(words: Sequence[str] | None = None) -> int:
    """0: every step that was wanted has its row, and none failed; 1: some failed or found no time; 2: a wrong flag."""
    options = _parser().parse_args(words)
    try:
        steps = plan.chosen(options.only, options.skip)
        row_log.drop_half_written_line(options.out / rows.FILE)
        before = rows.read(options.out / rows.FILE)
        _check_same(before, options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.plan:
        print(_planned(steps))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    budget = supervisor.Budget(options.seconds)
    command = ["scripts/gpu_check.sh", *(sys.argv[1:] if words is None else words)]
    about = {
        "command": command,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "budget": options.seconds,
    }

    def told(row: dict[str, Any]) -> None:
        seconds, left = row["seconds"], max(0.0, budget.left)
        print(f"{row['step']}: {row['status']}, {seconds:.1f} s; {left:.0f} s left", file=sys.stderr, flush=True)
        write_text(options.out / TABLE, table.text(rows.read(options.out / rows.FILE), about))

    workers = ["--shape", options.shape, "--device", options.device, "--out", str(options.out)]
    supervisor.run(steps, options.out, budget, workers, told)
    found = rows.read(options.out / rows.FILE)
    about["seconds"] = round(options.seconds - budget.left, 1)
    text = table.text(found, about)
    write_text(options.out / TABLE, text)
    print(text)
    return 0 if all(found[step.name]["status"] in rows.FINAL for step in steps) else 1


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="scripts/gpu_check.sh", description="Numbers about one GPU within one call of nine minutes."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of rows.jsonl, table.md and log.txt; goes on")
    parser.add_argument("--shape", default="7b", choices=SHAPES, help="sizes of the model; the default is 7b")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the check itself at the shape tiny")
    parser.add_argument(
        "--seconds", type=number(float, above=0), default=SECONDS, help="budget; a step that would not fit is not begun"
    )
    parser.add_argument("--only", action="append", default=[], metavar="STEP", help="a step or group; may be repeated")
    parser.add_argument("--skip", action="append", default=[], metavar="STEP", help="the same, to leave out")
    parser.add_argument("--plan", action="store_true", help="print the steps with their estimates, and run nothing")
    return parser


def _check_same(before: dict[str, rows.Row], options: argparse.Namespace) -> None:
    """ValueError: the folder's rows are of another shape or kind of device."""
    about = rows.result(before, "machine")
    was = (about.get("shape"), "cpu" if str(about.get("device", "")).startswith("cpu,") else "cuda")
    if about and was != (options.shape, options.device.partition(":")[0]):
        raise ValueError(f"--out {options.out}: holds rows of {was[0]} on {was[1]}; choose another folder")


def _planned(steps: Sequence[plan.Step]) -> str:
    there = {step.needs for step in steps if step.needs and plan.is_there(step.needs)}
    lines = [f"{'step':36}{'process':14}{'estimate, s':>12}{'limit, s':>10}"]
    for step in steps:
        absent = f"  needs {step.needs}" if step.needs and step.needs not in there else ""
        lines.append(f"{step.name:36}{step.group:14}{step.estimate:>12.0f}{step.limit:>10.0f}{absent}")
    total = plan.estimate(steps, there)
    return "\n".join(
        [*lines, f"about {total:.0f} s, {plan.START:.0f} s per process included (7b on an H200; estimates)"]
    )
