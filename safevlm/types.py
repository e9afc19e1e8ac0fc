"""The words that every room speaks: Request, Verdict, Reply, Sample. Frozen, and free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
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
