"""`safevlm mix`."""

from __future__ import annotations

import argparse
from pathlib import Path

from safevlm.command_line import SEED
from safevlm.commands import OK

TEXT = "Make the training data of both stages out of their sources: safevlm mix MIX --out DIR."


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "mix", metavar="MIX", help="sources, labels, counts: a YAML file, or a shipped one by name: mix_safevlm"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where stage1.jsonl, stage2.jsonl, mix.json go")
    parser.add_argument("--seed", type=SEED, help="instead of the file's")
    parser.add_argument("--root", type=Path, metavar="DIR", help="where source paths start, instead of the file's")
    parser.add_argument("--check", action="store_true", help="say what would be taken, and write nothing")


def run(options: argparse.Namespace) -> int:
    from safevlm import recipes
    from safevlm.data import mix_build, mix_report

    make = mix_build.check if options.check else mix_build.build
    report = make(recipes.find(options.mix, "mix"), Path(options.out), seed=options.seed, root=options.root)
    print("\n".join(mix_report.lines(report)))
    print(f"nothing written ({options.out})" if options.check else f"done: {options.out}")
    return OK
