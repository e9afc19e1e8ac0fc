"""Suites: where the questions come from. One file per benchmark, a line of the table in `table.py`.

    name                       what it is
    rtvlm, xstest …            a row of the table SUITES
    my.yaml                    questions of the user's own (`safevlm.evaluation.suites.own`)
    package.module:SUITE       a `Suite` of the user's own code, or a callable without arguments that gives one
    (entry points)             the same of an installed distribution, in the group `safevlm.suites`

`load_suite` finds a suite's folder, compares the rows with what is published, and never lets a sample go on without its
image. Nothing here loads torch before a suite that has images is read.
"""

from __future__ import annotations

from pathlib import Path

from safevlm.evaluation.suites import own
from safevlm.evaluation.suites.counts import checked
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.table import SUITES
from safevlm.evaluation.suites.tables import AbsentError
from safevlm.types import Sample

__all__ = ["DEFAULT", "SUITES", "AbsentError", "Suite", "folder_of", "load_suite", "read_suite", "suite_of"]

DEFAULT = "miniature"
"""The suite that commands ask unless told otherwise."""


def suite_of(name: str, where: str = "--suite") -> Suite:
    """A suite by name, reference or file; ValueError names those there are."""
    return own.read_suite_file(Path(name)) if own.is_file(name) else SUITES.find(name, where)


def load_suite(suite: Suite | str, data: Path, partial: bool = False) -> list[Sample]:
    """Samples that can be asked. ValueError: fewer than published or without their image, unless `partial`."""
    suite = suite_of(suite) if isinstance(suite, str) else suite
    samples = checked(suite, read_suite(suite, data), partial)
    if not samples:
        raise ValueError(f"{data}: suite {suite.name!r} has no samples")
    return samples


def read_suite(suite: Suite | str, data: Path) -> list[Sample]:
    """All samples, also those whose image is missing. AbsentError says what was looked for and how to get it."""
    suite = suite_of(suite) if isinstance(suite, str) else suite
    try:
        return suite.load(folder_of(suite, data))
    except AbsentError as error:
        raise AbsentError(
            f"suite {suite.name!r} is absent: {error}. It is read from {suite.layout}; get it with `{suite.download}`"
        ) from error


def folder_of(suite: Suite, data: Path) -> Path:
    """The suite's folder inside a folder of suites (case, `-` and `_` do not matter), else the folder itself."""
    names = {_plain(name) for name in (suite.folder, *suite.aliases) if name}
    inside = sorted(data.iterdir()) if data.is_dir() else []
    return next((folder for folder in inside if folder.is_dir() and _plain(folder.name) in names), data)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
