"""`safevlm pictograms parts | data | sheet`."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from safevlm.command_line import AMOUNT
from safevlm.commands import OK

TEXT = "The second world, of drawn things with real names: its pictures, its data and its suite."


def flags(parser: argparse.ArgumentParser) -> None:
    from safevlm.pictograms.dataset import PictogramDataConfig

    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    parts = verbs.add_parser("parts", help="render the things of all styles from their npm packages")
    parts.add_argument("--packages", type=Path, required=True, metavar="DIR", help="where `npm install` was run")
    parts.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the parts go")
    data = verbs.add_parser("data", help="write training records and the evaluation suite")
    data.add_argument("--parts", type=Path, required=True, metavar="DIR", help="what `parts` wrote")
    data.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the data goes")
    for field in fields(PictogramDataConfig):
        flag = f"--{field.name.replace('_', '-')}"
        data.add_argument(flag, type=AMOUNT, default=field.default, help=f"default {field.default}")
    sheet = verbs.add_parser("sheet", help="draw a contact sheet of things, styles and scenes")
    sheet.add_argument("--parts", type=Path, required=True, metavar="DIR", help="what `parts` wrote")
    sheet.add_argument("--out", type=Path, required=True, metavar="FILE", help="a PNG")


def run(options: argparse.Namespace) -> int:
    {"parts": _parts, "data": _data, "sheet": _sheet}[options.verb](options)
    return OK


def _parts(options: argparse.Namespace) -> None:
    from safevlm.pictograms import parts

    parts.write(options.packages, options.out)


def _data(options: argparse.Namespace) -> None:
    from safevlm.pictograms import dataset
    from safevlm.pictograms.parts import Parts

    given = {field.name: getattr(options, field.name) for field in fields(dataset.PictogramDataConfig)}
    dataset.write(options.out, Parts(options.parts), dataset.PictogramDataConfig(**given))


def _sheet(options: argparse.Namespace) -> None:
    from safevlm.pictograms import sheet
    from safevlm.pictograms.parts import Parts

    sheet.write(options.out, Parts(options.parts))
