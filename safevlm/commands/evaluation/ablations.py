"""`safevlm eval ablations`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import SEED
from safevlm.commands import FINDING, OK
from safevlm.evaluation.ablations.results import MARKDOWN, ablations
from safevlm.evaluation.ablations.table import check_trained, plan, read_table, told
from safevlm.evaluation.suites import DEFAULT

TEXT = "a table of ablations: the steps to run, or the results of those that were run"
DESCRIPTION = (
    "plan prints a line per step for eval/ablations/safevlm.sh: OUT RECIPE BASE RECORDS MODEL DEFENSE [flag ...], tabs "
    "between. report writes OUT/ablations.json and OUT/ablations.md. Exit code 1: a row is not measured yet."
)


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument("what", choices=["plan", "report"], metavar="plan|report")
    command.add_argument("table", type=Path, metavar="TABLE", help="YAML, such as eval/ablations/miniature.yaml")
    command.add_argument("--model", required=True, metavar="DIR", help="what training starts from")
    command.add_argument("--data", required=True, metavar="DIR", help="folder of the table's training records")
    command.add_argument("--out", required=True, metavar="DIR", help="folder of the runs")
    command.add_argument("--suite", default=DEFAULT, metavar="NAME", help="what was asked (default: %(default)s)")
    command.add_argument(
        "--seeds", type=SEED, nargs="+", default=[256], metavar="N", help="seeds of training (default: 256)"
    )


def run(options: argparse.Namespace) -> int:
    table = read_table(options.table)
    steps = plan(table, options.model, options.data, options.out, options.seeds)
    check_trained(steps)
    if options.what == "plan":
        print("\n".join(told(steps)))
        return OK
    missing = ablations(table, steps, options.suite, Path(options.out))
    print((Path(options.out) / MARKDOWN).read_text(encoding="utf-8"))
    if missing:
        print(f"not measured: {', '.join(missing)}")
    return FINDING if missing else OK
