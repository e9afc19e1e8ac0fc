"""Defences by name. Looking (`Detector`) and acting (`Policy`) are separate, because the grid is the experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from safevlm.defenses.base import Defense, Detector, Inputs, Sight, Stack
from safevlm.defenses.oracle import OracleDetector
from safevlm.defenses.policy import Policy
from safevlm.defenses.prompted import Prompted, StaticPrompt
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.types import Verdict

__all__ = ["DEFENSES", "Defense", "Detector", "Inputs", "Policy", "Setting", "Sight", "Stack", "build"]


@dataclass(frozen=True)
class Setting:
    """What a defence may be built from."""

    policy: Policy
    has_head: bool = False
    truths: Mapping[str, Verdict] = field(default_factory=dict)
    """Verdicts by request id, for the oracle."""


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


def build(name: str, setting: Setting) -> Defense:
    """A defence by name; `a+b` is a stack; `auto` is safety-head where there is a head, else none."""
    if name == "auto":
        name = "safety-head" if setting.has_head else "none"
    parts = name.split("+")
    unknown = [part for part in parts if part not in DEFENSES]
    if unknown:
        raise ValueError(f"unknown defense {unknown[0]!r}; one of {[*DEFENSES, 'auto']}, or several joined by +")
    members = [DEFENSES[part](setting) for part in parts]
    return members[0] if len(members) == 1 else Stack(members, setting.policy.taxonomy.level_names)
