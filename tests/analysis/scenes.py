"""Labelled miniature images on disk, a tiny checkpoint to look at them with, and verdicts made by hand."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from safevlm.analysis.labelled_images import LabelledImage
from safevlm.analysis.verdicts import DetectorVerdicts
from safevlm.miniature import dataset
from safevlm.taxonomy import CLEAN, DEFAULT, SAFE
from safevlm.types import Request, Verdict
from tests.engine import engines


def checkpoint(folder: Path) -> Path:
    """A random tiny model with a head."""
    guarded = engines.model()
    guarded.save_pretrained(folder)
    engines.processor_of(guarded).save_pretrained(folder)
    return folder


def rows(folder: Path, per_group: int = 8) -> Path:
    """`eval.jsonl` with seven groups and `train.jsonl` beside it."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dataset.write(
            folder, dataset.MiniatureDataConfig(risky=6, clean=6, per_group=per_group, validation_per_group=0)
        )
    return folder / "eval.jsonl"


def judged(pairs: Sequence[tuple[tuple[str, str], tuple[str, str], float]], name: str = "made") -> DetectorVerdicts:
    """Images by (true category and level, said category and level, how sure)."""
    images = tuple(LabelledImage(Request("?"), f"made:{at}", *truth) for at, (truth, _, _) in enumerate(pairs))
    return DetectorVerdicts(name, images, tuple(verdict(*said, sure) for _, said, sure in pairs))


def verdict(category: str = CLEAN, level: str = SAFE, sure: float = 1.0, source: str = "safety-head") -> Verdict:
    """The rest of the probability is spread evenly."""
    return Verdict(
        level=level,
        category=category,
        level_probabilities=_spread(DEFAULT.level_names, level, sure),
        category_probabilities=_spread(DEFAULT.category_names, category, sure),
        source=source,
    )


def _spread(names: Sequence[str], likeliest: str, sure: float) -> dict[str, float]:
    return {name: sure if name == likeliest else (1 - sure) / (len(names) - 1) for name in names}
