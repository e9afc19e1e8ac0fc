"""`safevlm check`: takes the flags of the recipe it looks at, too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from safevlm.command_line import AMOUNT, COUNT, number
from safevlm.commands import FINDING, OK, add_base

TEXT = "Look for every problem before a GPU is taken: of a recipe, a model, data, or this machine."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="PATH",
        help="a recipe (with its flags, as train takes them), a mix, a model, or data; shipped recipes and mixes "
        "also by name; nothing: the machine only",
    )
    parser.add_argument("--gpus", type=AMOUNT, default=0, metavar="N", help="GPUs per node; default: those seen here")
    parser.add_argument("--nodes", type=COUNT, default=1, metavar="N", help="nodes of the run")
    parser.add_argument(
        "--gpu-memory", type=number(float, above=0), metavar="GiB", help="of one GPU; default: the smallest seen, or 80"
    )
    parser.add_argument(
        "--against", type=Path, nargs="+", default=[], metavar="FILE", help="data that training data must not hold"
    )
    parser.add_argument("--taxonomy", type=Path, metavar="FILE", help="YAML of categories and levels, for data")
    parser.add_argument("--images", default="", metavar="DIR", help="folder that relative image paths start from")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    add_base(parser)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command's own words, and the recipe's flags."""
    from safevlm.check.command import split_flags

    return split_flags(words)


def run(options: argparse.Namespace) -> int:
    from safevlm.check import command, findings

    request = command.CheckRequest(
        path=options.path,
        gpus=options.gpus,
        nodes=options.nodes,
        gpu_memory=options.gpu_memory,
        base=options.base,
        against=tuple(options.against),
        taxonomy=options.taxonomy,
        images=options.images,
        recipe_flags=tuple(options.recipe_flags),
    )
    if options.json:
        found = list(command.findings(request))
        print(findings.as_json(found))
    else:
        found = findings.show(command.findings(request))
    return OK if all(one.ok for one in found) else FINDING
