"""`safevlm eval report`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import AMOUNT
from safevlm.commands import FINDING, OK
from safevlm.commands.evaluation.run_flags import named_folders
from safevlm.evaluation.report.gallery import PER_GROUP
from safevlm.evaluation.report.page import TITLE, report

TEXT = "tables and pages from judged runs, without the model"
DESCRIPTION = "Writes OUT/report.html (one file, no network), OUT/table.md, OUT/table.tex and OUT/summary.json."


def flags(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--run", action="append", required=True, metavar="NAME=DIR", help="a row; repeat for more rows and suites"
    )
    command.add_argument("--head", metavar="NAME", help="the run whose detector's accuracy is reported (default: none)")
    command.add_argument("--seconds", metavar="FILE", help="JSON object of wall times, copied into summary.json")
    command.add_argument("--title", default=TITLE, help="heading of the page (default: %(default)s)")
    command.add_argument(
        "--per-group",
        type=AMOUNT,
        default=PER_GROUP,
        metavar="N",
        help="samples shown per group (default: %(default)s)",
    )
    command.add_argument("--out", required=True, metavar="DIR", help="folder for the four files")


def run(options: argparse.Namespace) -> int:
    summary = report(
        named_folders(options.run),
        options.out,
        head=options.head,
        seconds=options.seconds,
        title=options.title,
        per_group=options.per_group,
    )
    print((Path(options.out) / "table.md").read_text(encoding="utf-8"))
    print(f"{Path(options.out) / 'report.html'}")
    return OK if all(run["finished"] for run in summary["runs"].values()) else FINDING
