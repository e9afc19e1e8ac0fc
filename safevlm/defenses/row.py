"""One row of the table of defenses: everything that the rest of the project needs to know about one of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from safevlm.defenses.base import Defense
from safevlm.defenses.context import DefenseContext


@dataclass(frozen=True)
class DefenseRow:
    """How a defense is called, built and fed."""

    name: str
    """As on the command line, `--defense NAME`."""
    build: Callable[[DefenseContext], Defense]
    """Raises ValueError when the model or a file does not fit, and says what to do."""
    text: str = ""
    """What it does, in one line."""
    takes_file: bool = False
    """Its name may be followed by `=FILE`."""
    reads_folder: bool = False
    """Without `=FILE` it may read the checkpoint's folder `defenses/`, whose files then belong to a run's identity."""
    works_on_served_model: bool = False
    """It only rewrites requests, so that a model behind somebody else's server can be asked through it."""
