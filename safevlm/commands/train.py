"""`safevlm train`: the recipe's own parser knows every --key.sub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from safevlm.commands import OK

TEXT = "Train a stage: safevlm train RECIPE [--key.sub value …]; also under deepspeed and torchrun."


def flags(parser: argparse.ArgumentParser) -> None:
    """Only for the list of commands; `run` parses."""


def run(words: Sequence[str]) -> int:
    from safevlm.training.recipe import parse

    recipe = parse(words)
    from safevlm.sharding import share_of
    from safevlm.training import processes
    from safevlm.training.run import train
    from safevlm.training.stages import stage_of

    final = train(recipe)
    processes.leave()
    if share_of(None).rank == 0:  # one of several processes speaks
        print(f"done: {final}")
        defense = stage_of(recipe).defense
        if "{file}" in defense:
            print(f"its defense: --defense {defense.format(file=final)}")
    return OK
