"""`safevlm bench audit`: the audit itself, timed beside the bare vision tower."""

from __future__ import annotations

import argparse

from safevlm.commands import audit

TEXT = "how fast an audit is beside the bare vision tower, on the same images"
DESCRIPTION = "An audit as by `safevlm audit --bench`; OUT/bench.json has the ratios."


def flags(command: argparse.ArgumentParser) -> None:
    audit.flags(command)
    command.set_defaults(bench=True)


def run(options: argparse.Namespace) -> int:
    return audit.run(options)
