"""Suites: where the questions come from. A loader takes the data folder and gives samples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eval.suites import miniature
from safevlm.types import Sample

SUITES: dict[str, Callable[[Path], list[Sample]]] = {"miniature": miniature.load}


def load_suite(name: str, data: Path) -> list[Sample]:
    """Samples of a suite; ValueError names the suites there are."""
    if name not in SUITES:
        raise ValueError(f"--suite: unknown suite {name!r}; one of {list(SUITES)}")
    samples = SUITES[name](data)
    if not samples:
        raise ValueError(f"{data}: suite {name!r} has no samples")
    return samples
