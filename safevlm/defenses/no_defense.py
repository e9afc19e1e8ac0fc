"""`none`: the bare model, which every other defense is measured against."""

from __future__ import annotations

from safevlm.defenses.base import Defense
from safevlm.defenses.row import DefenseRow

ROW = DefenseRow("none", lambda context: Defense(), "the bare model", works_on_served_model=True)
