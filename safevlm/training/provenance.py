"""What made a checkpoint: the files `recipe.yaml` and `run.json` beside its weights."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import yaml

from safevlm.config import Recipe
from safevlm.data.record_facts import facts_of, label_counts
from safevlm.data.records import Record
from safevlm.versions import commit, installed

PACKAGES = ("torch", "transformers", "peft", "accelerate", "deepspeed", "bitsandbytes", "safetensors")
RECIPE, RUN = "recipe.yaml", "run.json"


def files(
    recipe: Recipe,
    records: Sequence[Record],
    changes: Mapping[str, Any],
    trained: Mapping[str, int],
    processes: int,
    inputs: Mapping[str, Any],
) -> dict[str, str]:
    """Contents by file name.

    `changes`: counts of what `data.exclude` left out, and of what `data.relabel` changed. `trained`: sizes of the
    parameters that train, by name. `inputs`: digests of what the recipe names.
    """
    record = _run_record(recipe, records, changes, trained, processes) | {"inputs": inputs}
    return {RECIPE: recipe_yaml(recipe), RUN: json.dumps(record, indent=1)}


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe, as it can be run again."""
    return yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)


def _run_record(
    recipe: Recipe, records: Sequence[Record], changes: Mapping[str, Any], trained: Mapping[str, int], processes: int
) -> dict[str, Any]:
    """What made this checkpoint: versions, commit, seed, data counts, what trained."""
    facts = facts_of(records)
    return {
        "stage": recipe.stage,
        "seed": recipe.run.seed,
        "processes": processes,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "commit": commit(),
        "records": {
            "all": len(records),
            **changes,
            "safe_type": label_counts(facts["safe_type"]),
            "safe_level": label_counts(facts["safe_level"]),
        },
        "trained": {"tensors": len(trained), "parameters": sum(trained.values())},
    }
