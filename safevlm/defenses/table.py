"""The table of defenses, and a defense by name: `NAME`, `NAME=FILE`, a stack `a+b`, `package.module:Class`.

A defense that joins the project is a file with its row, and its row's name here. One that stays outside is named by
`package.module:Attribute` or comes by an entry point of the group `safevlm.defenses` (`safevlm.defenses.adopt`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from safevlm.defenses import (
    best_of_n,
    companion,
    consistent,
    either,
    fusion,
    learned_inputs,
    mixer,
    names,
    no_defense,
    oracle,
    probe,
    safe_clip,
    safety_head,
    self_check,
    smoothed,
    viewed,
)
from safevlm.defenses.adopt import adopt
from safevlm.defenses.base import Defense, Detector
from safevlm.defenses.context import DefenseContext
from safevlm.defenses.mixer import Mixer
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.stack import Stack
from safevlm.plugins import Registry
from safevlm.usage import UsageError

AUTO = "auto"
"""Stands for `safety-head` where the checkpoint has a head, else for `none`."""

OURS = (
    no_defense.ROW,
    safety_head.ROW,
    either.ROW,
    smoothed.ROW,
    consistent.ROW,
    *safe_clip.ROWS,
    *viewed.ROWS,
    companion.ROW,
    *learned_inputs.ROWS,
    mixer.ROW,
    probe.ROW,
    oracle.ROW,
    self_check.ROW,
    best_of_n.ROW,
    *fusion.ROWS,
)
DEFENSES: Registry[DefenseRow] = Registry("defenses", {row.name: row for row in OURS}, adopt)


@dataclass(frozen=True)
class Member:
    """One defense of a stack, as it was named."""

    row: DefenseRow
    file: Path | None = None
    """What stood behind `=`."""


def members(text: str) -> list[Member]:
    """The rows that a name on the command line means, in order; none of them is built.

    `auto` depends on the checkpoint and has no members. ValueError: an unknown name, a broken plug-in, or a file for a
    defense that reads none.
    """
    return [] if text == AUTO else [_member(each) for each in names.parse(text, DEFENSES)]


def _member(named: names.Named) -> Member:
    row = DEFENSES.find(named.name, "--defense")
    if named.file is not None and not row.takes_file:
        raise UsageError(f"defense {named.name}={named.file}: {named.name} reads no file")
    return Member(row, named.file)


def build(name: str, context: DefenseContext) -> Defense:
    """A defense by name, for a model of which `context` tells what a defense may know."""
    if name == AUTO:
        name = safety_head.ROW.name if context.has_head else no_defense.ROW.name
    built = [each.row.build(replace(context, file=each.file, detectors=_detector)) for each in members(name)]
    return built[0] if len(built) == 1 else Stack(built, context.policy.taxonomy.level_names, context.policy)


def _detector(name: str, context: DefenseContext) -> Detector:
    """The looking half of a defense by name. ValueError when it has none."""
    found = DEFENSES.find(name, "detector").build(replace(context, detectors=_detector)) if name in DEFENSES else None
    if not isinstance(found, Mixer):
        raise ValueError(f"{name!r} is no detector; name one that looks at images, such as safety-head or safe-clip")
    return found.detector
