"""The checks of a recipe as one table. A check stands before the checks that use what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from safevlm.check import changed_images, content, input_paths, model, resources
from safevlm.check.findings import Finding
from safevlm.check.plan import RunPlan

CHECKS: tuple[tuple[str, Callable[[RunPlan], Iterable[Finding]]], ...] = (
    ("recipe", input_paths.arguments),
    ("run.deepspeed", input_paths.deepspeed),
    ("data files", input_paths.data_files),
    ("run.out", input_paths.out),
    ("model", model.kind),
    ("weights", model.weights),
    ("processor", model.processor),
    ("generation config", model.generation),
    ("records", content.records),
    ("labels", content.labels),
    ("images", content.images),
    ("data.augment", changed_images.augmentation),
    ("adversarial.epsilon", changed_images.attack),
    ("tensor.kind", changed_images.tensor),
    ("image slots", content.slots),
    ("sample", content.sample),
    ("what trains", resources.trained),
    ("memory", resources.gpu_memory),
    ("disk", resources.disk_space),
    ("dry run of saving", resources.saving),
)
