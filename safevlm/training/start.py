"""The checkpoint that a run starts from, with the recipe's safety modules, taxonomy and policy."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from safevlm.config import Recipe, SafetyConfig
from safevlm.defenses.policy import policy_from
from safevlm.model import loading
from safevlm.model.safe_llava import SafeLlavaConfig
from safevlm.taxonomy import read_taxonomy
from safevlm.training.arguments import frozen_dtype
from safevlm.training.stages import stage_of

log = logging.getLogger(__name__)
CALIBRATION = "calibration"
"""The part of a policy that belongs to one set of weights."""


def load(recipe: Recipe) -> loading.Loaded:
    """The checkpoint to start from, with the recipe's safety modules, taxonomy and policy."""
    model = recipe.model
    safety, policy = labels(model.taxonomy, model.safety)
    loaded = loading.load(
        model.path,
        safety=safety,
        base=model.base,
        dtype=frozen_dtype(recipe),
        attention=model.attention,
        lm=bool(recipe.loss.lm) or stage_of(recipe).runs_lm,
        quantize=model.quantize,
        device=loading.default_device(recipe.run.device),
    )
    if loaded.kind == "adapter":
        raise ValueError(f"{loaded.path}: has a LoRA already; merge it first: safevlm merge {loaded.path} --out DIR")
    config = loaded.safe_llava.config
    if model.taxonomy:
        adopt(config, safety.taxonomy, policy, model.taxonomy)
    policy = config.policy or {}
    if stage_of(recipe).trains_head and CALIBRATION in policy:
        log.warning("%s: its calibration is of the head before this training; left out", loaded.path)
        config.policy = {key: value for key, value in policy.items() if key != CALIBRATION}
    return loaded


def labels(file: str | None, safety: SafetyConfig) -> tuple[SafetyConfig, dict[str, Any] | None]:
    """The safety modules with the taxonomy of a YAML file (none: their own), and the file's policy."""
    if file is None:
        return safety, None
    taxonomy, policy = read_taxonomy(file)
    return dataclasses.replace(safety, taxonomy=taxonomy.to_dict()), policy


def adopt(config: SafeLlavaConfig, table: Any, policy: dict[str, Any] | None, file: str) -> None:
    """Puts taxonomy and policy into the checkpoint's config. Its head is of a certain size: names must stay."""
    names = {kind: [entry["name"] for entry in table[kind]] for kind in ("categories", "levels")}
    own = {"categories": config.taxonomy.category_names, "levels": config.taxonomy.level_names}
    if config.safety and names != own:
        raise ValueError(f"model.taxonomy: {file} has {names}, but this checkpoint's head was trained for {own}")
    if config.safety:
        config.safety = {**config.safety, "taxonomy": table}
    policy_from(policy or {}, config.taxonomy, f"{file}: policy")
    config.policy = policy or config.policy
