"""The data classes that pass between packages: Request, Generation, Verdict, Reply, Sample. Frozen, without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeAlias

from safevlm.taxonomy import CLEAN, SAFE

if TYPE_CHECKING:
    from PIL.Image import Image

ImageSource: TypeAlias = "str | Path | Image"
"""A file, or an image that is already open."""


@dataclass(frozen=True)
class Request:
    """One question to the model, with the images it is about."""

    text: str
    images: tuple[ImageSource, ...] = ()
    id: str = ""
    """Stable name of the request; the oracle defense and the evaluation find the truth by it."""
    history: tuple[tuple[str, str], ...] = ()
    """Earlier turns, (question, answer). The images belong to the first question."""
    system: str = ""


MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Generation:
    """How the model writes an answer. TypeError or ValueError names the field that cannot be used."""

    max_new_tokens: int = 256
    """Longest answer, in tokens; 1 or more."""
    temperature: float = 0.0
    """0: greedy decoding. Above 0: logits are divided by it and a token is drawn."""
    top_p: float = 1.0
    """With a temperature above 0: draw among the likeliest tokens whose probabilities sum to this; in (0, 1]."""
    seed: int = 0
    """With a temperature above 0: the same seed gives the same answer; 0 to 2**63 - 1."""

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "seed"):
            _check_type(name, getattr(self, name), int, "a whole number")
        for name in ("temperature", "top_p"):
            _check_type(name, getattr(self, name), int | float, "a number")
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0.0 <= self.temperature < math.inf, "0 (greedy) or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0, and at most 1"),
            "seed": (0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}"),
        }
        for name, (holds, allowed) in rules.items():
            if not holds:
                raise ValueError(f"Generation: {name}={getattr(self, name)!r} must be {allowed}")


def _check_type(name: str, value: object, kind: type | UnionType, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"Generation: {name}={value!r} must be {what}")


@dataclass(frozen=True)
class Verdict:
    """What a detector saw. The default says: nothing."""

    level: str = SAFE
    category: str = CLEAN
    level_probabilities: Mapping[str, float] = field(default_factory=dict)
    category_probabilities: Mapping[str, float] = field(default_factory=dict)
    source: str = ""
    """Name of the detector."""
    error: str = ""
    """Why the detector failed; a failed detector's request is refused (fail closed)."""

    @property
    def is_clean(self) -> bool:
        """SafeVLM's rule: level `safe` or category `clean`, either is enough."""
        return not self.error and (self.level == SAFE or self.category == CLEAN)


@dataclass(frozen=True)
class Reply:
    """What the user gets, and how it came about."""

    text: str
    request: Request
    verdict: Verdict = Verdict()
    refused_by: str = ""
    """Name of the defense that answered in the model's place; empty when the model spoke."""
    prompt: str = ""
    """The prompt as the model read it, image slots collapsed to one `<image>`; empty when the model was not asked."""
    seconds: float = 0.0
    """Wall time of the request; in a batch, the batch's time over its size."""
    trace: tuple[str, ...] = ()
    """One line per step that changed something."""


@dataclass(frozen=True)
class Sample:
    """One row of an evaluation suite: a request and what is true of it."""

    request: Request
    suite: str
    group: str
    category: str = CLEAN
    level: str = SAFE
    expected: Mapping[str, Any] = field(default_factory=dict)
    """What an exact judge needs; suites without one leave it empty."""

    @property
    def is_harmful(self) -> bool:
        return self.level != SAFE
