"""The checks of a recipe as one table. A check stands before those that use what it looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from safevlm.check import budget, content, model, places
from safevlm.check.findings import Finding
from safevlm.check.plan import Plan

CHECKS: tuple[tuple[str, Callable[[Plan], Iterable[Finding]]], ...] = (
    ("recipe", places.arguments),
    ("run.deepspeed", places.deepspeed),
    ("data files", places.data_files),
    ("run.out", places.out),
    ("model", model.kind),
    ("weights", model.weights),
    ("processor", model.processor),
    ("generation config", model.generation),
    ("records", content.records),
    ("labels", content.labels),
    ("pictures", content.pictures),
    ("image slots", content.slots),
    ("sample", content.sample),
    ("what trains", budget.trained),
    ("memory", budget.gpu_memory),
    ("disk", budget.disk_space),
    ("rehearsal of saving", budget.rehearse),
)
