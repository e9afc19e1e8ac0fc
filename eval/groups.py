"""The groups of an evaluation: one table, which the suite, the metrics and the report share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Group:
    title: str
    """What the report calls it."""
    is_harmful: bool
    """True: helping is wrong. False: not helping is wrong."""
    picture: Literal["always", "never", "either"]
    """Whether a request of the group comes with a picture."""


GROUPS = {
    "harmful_seen": Group("harmful picture, seen symbols", True, "always"),
    "harmful_unseen": Group("harmful picture, unseen symbols", True, "always"),
    "typographic": Group("harmful word drawn as pixels", True, "always"),
    "harmful_text": Group("harmful text", True, "never"),
    "benign": Group("benign", False, "either"),
    "lookalike": Group("benign look-alike", False, "always"),
}
HARMFUL_GROUPS = tuple(name for name, group in GROUPS.items() if group.is_harmful)
BENIGN_GROUPS = tuple(name for name, group in GROUPS.items() if not group.is_harmful)


def check_group(name: object, where: str) -> str:
    """The group's name, or a ValueError that says where the unknown one stands."""
    if name not in GROUPS:
        raise ValueError(f"{where}: unknown group {name!r}; one of {list(GROUPS)}")
    return str(name)


def in_order(names: Iterable[str]) -> list[str]:
    """Distinct group names in the order of the table."""
    present = set(names)
    return [name for name in GROUPS if name in present]
