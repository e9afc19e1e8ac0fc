"""Defences by name. Looking (`Detector`) and acting (`Policy`) are separate, because the grid is the experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from safevlm.defenses import names
from safevlm.defenses.base import Ask, Defense, Detector, Inputs, Sight, Stack, VirtualTokens
from safevlm.defenses.oracle import OracleDetector
from safevlm.defenses.policy import Policy
from safevlm.defenses.prompted import Prompted, StaticPrompt
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.defenses.setting import FOLDER, ModelFacts, Setting

__all__ = [
    "DEFENSES", "FOLDER", "Ask", "Defense", "Detector", "Inputs", "ModelFacts", "Policy", "Setting", "Sight", "Stack",
    "VirtualTokens", "build",
]  # fmt: skip


def _safety_head(setting: Setting) -> Defense:
    if not setting.has_head:
        raise ValueError("defense safety-head: this checkpoint has no safety head; train one with a stage-1 recipe")
    return Prompted(SafetyHeadDetector(), setting.policy)


DEFENSES: dict[str, Callable[[Setting], Defense]] = {
    "none": lambda setting: Defense(),
    "safety-head": _safety_head,
    "static-prompt": lambda setting: StaticPrompt(),
    "oracle": lambda setting: Prompted(OracleDetector(setting.truths), setting.policy),
}


TAKE_FILES = ("safe-clip", "security-tensor", "self-check", "eta", "fusion")
"""Beginnings of the names that may be followed by `=FILE`."""


def build(name: str, setting: Setting) -> Defense:
    """A defence by name: `NAME`, `NAME=FILE`, a stack `a+b`; `auto` is safety-head where there is a head, else none."""
    if name == "auto":
        name = "safety-head" if setting.has_head else "none"
    members = [_member(part, setting) for part in names.parse(name, DEFENSES)]
    return members[0] if len(members) == 1 else Stack(members, setting.policy.taxonomy.level_names)


def _member(part: names.Named, setting: Setting) -> Defense:
    if part.file is not None and not part.name.startswith(TAKE_FILES):
        raise ValueError(f"defense {part.name}={part.file}: {part.name} reads no file")
    return DEFENSES[part.name](replace(setting, file=part.file))
