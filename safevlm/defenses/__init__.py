"""Defenses by name. Looking (`Detector`) and acting (`Policy`) are separate, because the grid is the experiment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from safevlm.defenses import fusion, names
from safevlm.defenses.base import Ask, Defense, Detector, ImageFeatures, Inputs, Stack, VirtualTokens
from safevlm.defenses.best_of_n import build_eta
from safevlm.defenses.context import FOLDER, DefenseContext, ModelFacts
from safevlm.defenses.mixer import Mixer, StaticPrompt
from safevlm.defenses.options import read_options
from safevlm.defenses.oracle import OracleDetector
from safevlm.defenses.policy import Policy
from safevlm.defenses.safety_head import SafetyHeadDetector
from safevlm.defenses.self_check import SelfCheck, Wording

__all__ = [
    "ImageFeatures",
    "DEFENSES",
    "FOLDER",
    "Ask",
    "Defense",
    "Detector",
    "Inputs",
    "ModelFacts",
    "Policy",
    "DefenseContext",
    "Stack",
    "VirtualTokens",
    "build",
]


def _safety_head(setting: DefenseContext) -> Defense:
    if not setting.has_head:
        raise ValueError("defense safety-head: this checkpoint has no safety head; train one with a stage-1 recipe")
    return Mixer(SafetyHeadDetector(), setting.policy)


def _safe_clip(feature: Literal["paper", "pooled"] | None = None) -> Callable[[DefenseContext], Defense]:
    def build(setting: DefenseContext) -> Defense:
        from safevlm.defenses.safe_clip import build_safe_clip  # late: it brings torch, and judges do without

        return build_safe_clip(setting, feature)

    return build


def _security_tensor(kind: Literal["textual", "visual"]) -> Callable[[DefenseContext], Defense]:
    def build(setting: DefenseContext) -> Defense:
        from safevlm.defenses import security_tensor  # late, too

        return getattr(security_tensor, kind)(setting)

    return build


def _detector(name: str, setting: DefenseContext) -> Detector:
    """The looking half of a defense by name."""
    member = DEFENSES[name](setting) if name in DEFENSES else None
    if not isinstance(member, Mixer):
        raise ValueError(f"{name!r} is no detector; name one that looks at images, such as safety-head or safe-clip")
    return member.detector


def _fusion(rule: str, setting: DefenseContext) -> Defense:
    """A file behind its name is SafeCLIP's bank."""
    members = [_detector(name, setting) for name in fusion.MEMBERS]
    return Mixer(fusion.Fusion(rule, members, setting.policy), setting.policy)


DEFENSES: dict[str, Callable[[DefenseContext], Defense]] = {
    "none": lambda setting: Defense(),
    "safety-head": _safety_head,
    "safe-clip": _safe_clip(),
    "safe-clip:paper": _safe_clip("paper"),
    "safe-clip:pooled": _safe_clip("pooled"),
    "security-tensor:textual": _security_tensor("textual"),
    "security-tensor:visual": _security_tensor("visual"),
    "static-prompt": lambda setting: StaticPrompt(),
    "oracle": lambda setting: Mixer(OracleDetector(setting.truths), setting.policy),
    "self-check": lambda setting: SelfCheck(read_options(Wording, setting.file)),
    "eta": lambda setting: build_eta(setting, _detector),
    "fusion:max": lambda setting: _fusion("max", setting),
    "fusion:mean": lambda setting: _fusion("mean", setting),
}


TAKE_FILES = ("safe-clip", "security-tensor", "self-check", "eta", "fusion")
"""Beginnings of the names that may be followed by `=FILE`."""


def build(name: str, setting: DefenseContext) -> Defense:
    """A defense by name: `NAME`, `NAME=FILE`, a stack `a+b`; `auto` is safety-head where there is a head, else none."""
    if name == "auto":
        name = "safety-head" if setting.has_head else "none"
    members = [_member(part, setting) for part in names.parse(name, DEFENSES)]
    return members[0] if len(members) == 1 else Stack(members, setting.policy.taxonomy.level_names)


def _member(part: names.Named, setting: DefenseContext) -> Defense:
    if part.file is not None and not part.name.startswith(TAKE_FILES):
        raise ValueError(f"defense {part.name}={part.file}: {part.name} reads no file")
    return DEFENSES[part.name](replace(setting, file=part.file))
