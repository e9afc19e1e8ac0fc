"""Defenses by name (`safevlm.defenses.table`). A `Detector` sees, a `Policy` acts; the two are separate."""

from __future__ import annotations

from safevlm.defenses.base import Ask, Defense, Detector, ImageFeatures, Inputs, VirtualTokens
from safevlm.defenses.context import FOLDER, DefenseContext, ModelFacts
from safevlm.defenses.policy import Policy
from safevlm.defenses.row import DefenseRow
from safevlm.defenses.stack import Stack
from safevlm.defenses.table import DEFENSES, build, members

__all__ = [
    "DEFENSES",
    "FOLDER",
    "Ask",
    "Defense",
    "DefenseContext",
    "DefenseRow",
    "Detector",
    "ImageFeatures",
    "Inputs",
    "ModelFacts",
    "Policy",
    "Stack",
    "VirtualTokens",
    "build",
    "members",
]
