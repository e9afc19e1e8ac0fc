"""Suites: where the questions come from. One file per benchmark, a line of the table here.

`load_suite` is the door: it finds the suite's folder, compares the rows with what is published, and never lets a sample
go on without its image. Nothing here loads torch before a suite that has images is read. A suite of one's own is a
module with `questions(data)` and a `SUITE` (`xstest.py` is the shortest), and a name below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safevlm.evaluation.suites import (
    advbench,
    figstep,
    holisafe,
    jailbreakv,
    miniature,
    mm_safetybench,
    mossbench,
    mssbench,
    risk_sets,
    rtvlm,
    siuo,
    spa_vl,
    vlguard,
    vlsbench,
    xstest,
)
from safevlm.evaluation.suites.counts import checked
from safevlm.evaluation.suites.suite import Suite
from safevlm.evaluation.suites.tables import AbsentError
from safevlm.types import Sample

__all__ = ["SUITES", "AbsentError", "Suite", "folder_of", "load_suite", "read_suite", "suite_of"]

SUITES: Mapping[str, Suite] = {
    suite.name: suite
    for suite in (
        miniature.SUITE,
        rtvlm.SUITE,
        rtvlm.TEST,
        risk_sets.SUITE,
        vlguard.SUITE,
        mm_safetybench.SUITE,
        mm_safetybench.TINY_SUITE,
        figstep.SUITE,
        figstep.TINY_SUITE,
        spa_vl.SUITE,
        jailbreakv.SUITE,
        jailbreakv.MINI_SUITE,
        vlsbench.SUITE,
        siuo.GEN_SUITE,
        siuo.MCQ_SUITE,
        holisafe.SUITE,
        mssbench.SUITE,
        mossbench.SUITE,
        mossbench.CONTRAST_SUITE,
        xstest.SUITE,
        advbench.SUITE,
    )
}


def suite_of(name: str) -> Suite:
    """A suite by name; ValueError names those there are."""
    if name not in SUITES:
        raise ValueError(f"--suite: unknown suite {name!r}; one of {list(SUITES)}")
    return SUITES[name]


def load_suite(name: str, data: Path, partial: bool = False) -> list[Sample]:
    """Samples that can be asked. ValueError: fewer than published or without their image, unless `partial`."""
    suite = suite_of(name)
    samples = checked(name, suite, read_suite(name, data), partial)
    if not samples:
        raise ValueError(f"{data}: suite {name!r} has no samples")
    return samples


def read_suite(name: str, data: Path) -> list[Sample]:
    """All samples, also those whose image is missing. AbsentError says what was looked for and how to get it."""
    suite = suite_of(name)
    try:
        return suite.load(folder_of(suite, data))
    except AbsentError as error:
        raise AbsentError(
            f"suite {name!r} is absent: {error}. It is read from {suite.layout}; get it with `{suite.download}`"
        ) from error


def folder_of(suite: Suite, data: Path) -> Path:
    """The suite's folder inside a folder of suites (case, `-` and `_` do not matter), else the folder itself."""
    names = {_plain(name) for name in (suite.folder, *suite.aliases)}
    inside = sorted(data.iterdir()) if data.is_dir() else []
    return next((folder for folder in inside if folder.is_dir() and _plain(folder.name) in names), data)


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())
