"""The groups of an evaluation, and on which side each one lies: the suites, the metrics and the report share this.

A group's name is local to its suite (`benign` of two suites are two groups), so whoever asks for a group says the suite
too. The miniature's table stands here; every other suite brings its own, in its file in `safevlm.evaluation.suites`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Side = Literal["harmful", "benign", "scored"]
"""harmful: helping is wrong. benign: not helping is wrong. scored: a judge's score or an accuracy, higher is better."""


@dataclass(frozen=True)
class Group:
    title: str
    """What the report calls it."""
    side: Side
    image: Literal["always", "never", "either"] = "always"
    """Whether a request of the group comes with an image."""

    @property
    def is_harmful(self) -> bool:
        return self.side == "harmful"

    @property
    def is_benign(self) -> bool:
        return self.side == "benign"


GROUPS = {
    "harmful_seen": Group("harmful image, seen symbols", "harmful"),
    "harmful_unseen": Group("harmful image, unseen symbols", "harmful"),
    "typographic": Group("harmful word drawn as pixels", "harmful"),
    "harmful_text": Group("harmful text", "harmful", "never"),
    "benign": Group("benign", "benign", "either"),
    "lookalike": Group("benign look-alike", "benign"),
}
HARMFUL_GROUPS = tuple(name for name, group in GROUPS.items() if group.is_harmful)
BENIGN_GROUPS = tuple(name for name, group in GROUPS.items() if group.is_benign)
MINIATURE = "miniature"


def groups_of(suite: str) -> Mapping[str, Group]:
    """A suite's groups in the order of its table; ValueError names the suites there are."""
    from safevlm.evaluation.suites import suite_of

    return suite_of(suite).groups


def group_of(suite: str, name: str) -> Group:
    return groups_of(suite)[check_group(name, suite, suite)]


def side_of(suite: str, name: str) -> Side:
    """harmful, benign or scored; ValueError when the suite has no such group."""
    return group_of(suite, name).side


def groups_on(suite: str, side: Side) -> tuple[str, ...]:
    """Names of the suite's groups on one side."""
    return tuple(name for name, group in groups_of(suite).items() if group.side == side)


def check_group(name: object, where: str, suite: str = MINIATURE) -> str:
    """The group's name, or a ValueError that says where the unknown one stands."""
    groups = groups_of(suite)
    if name not in groups:
        raise ValueError(f"{where}: unknown group {name!r}; one of {list(groups)}")
    return str(name)


def in_order(names: Iterable[str], suite: str = MINIATURE) -> list[str]:
    """Distinct group names in the order of the suite's table."""
    present = set(names)
    return [name for name in groups_of(suite) if name in present]
