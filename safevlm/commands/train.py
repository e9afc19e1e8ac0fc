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
    from safevlm.training.run import train

    print(f"done: {train(recipe)}")
    return OK
