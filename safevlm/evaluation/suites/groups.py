"""The groups of a suite, and the side on which each one lies.

A group's name is local to its suite: `benign` of two suites are two groups. So a group is always asked of its suite
(`safevlm.evaluation.suites.suite.Suite`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Side = Literal["harmful", "benign", "scored"]
"""harmful: helping is wrong. benign: not helping is wrong. scored: a judge's score or an accuracy, higher is better."""
SIDES: tuple[Side, ...] = ("harmful", "benign", "scored")
"""All sides, in the order of reports."""
Images = Literal["always", "never", "either"]


@dataclass(frozen=True)
class Group:
    title: str
    """The group's name in reports."""
    side: Side
    image: Images = "always"
    """Whether a request of the group comes with an image."""

    @property
    def is_harmful(self) -> bool:
        return self.side == "harmful"

    @property
    def is_benign(self) -> bool:
        return self.side == "benign"
