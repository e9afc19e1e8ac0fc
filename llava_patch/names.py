"""LLaVA's names, in one place: attribute paths, prefixes of weights, what LoRA and quantisation may touch.

Paths are those of a `LlavaForConditionalGeneration` in memory, which are also the prefixes of its parameters' names.
On disk llava-hf folders use older prefixes, which transformers translates (`llava_patch.checkpoints`).
"""

from __future__ import annotations

import re
from collections.abc import Container

MODEL_TYPE = "llava"
"""`model_type` in a stock folder's config.json."""

VISION_TOWER = "model.vision_tower"
PROJECTOR = "model.multi_modal_projector"
LANGUAGE_MODEL = "model.language_model"
LM_HEAD = "lm_head"
LM_LAYERS = f"{LANGUAGE_MODEL}.layers."
"""Prefix of the weights of the LLM's decoder layers."""

LORA_TARGETS = rf"{re.escape(LM_LAYERS)}\d+\.(self_attn|mlp)\.(q|k|v|o|gate|up|down)_proj"
"""Regular expression for the LLM's linear layers and nothing else. PEFT's `all-linear` would take vision tower,
projector and safety modules too (base facts §4.3), and lm_head must stay out (methods §1.9, trap 5)."""
PACKED_BELOW = f"{LANGUAGE_MODEL}."
"""Prefix of the modules whose linear layers quantisation packs."""
NEVER_PACKED = (VISION_TOWER, PROJECTOR, LM_HEAD)
"""Modules with linear layers that stay in full precision; names from the start of the full path."""

GUARD_INPUTS = ("vision_tower.", "multi_modal_projector.", "embed_tokens.")
"""Parts of the names of the weights that a safety head's verdict depends on. What stands in front of these parts
differs between versions of the layout; from here on all agree."""


OLDER = {
    "language_model.model.": f"{LANGUAGE_MODEL}.",
    "language_model.lm_head": LM_HEAD,
    "vision_tower.": f"{VISION_TOWER}.",
    "multi_modal_projector.": f"{PROJECTOR}.",
}
"""Beginnings of module names in transformers before 4.52 → today's."""
INNER_TOWER = "vision_model."
"""Some releases have this level inside the vision tower, others do not."""


def module_of(name: str, modules: Container[str]) -> str | None:
    """The name that a module of this or an older name has among `modules`; None: it is not there."""
    old = next((old for old in OLDER if name.startswith(old)), None)
    today = f"{OLDER[old]}{name.removeprefix(old)}" if old else name
    inside = f"{VISION_TOWER}.{INNER_TOWER}{today.removeprefix(f'{VISION_TOWER}.')}"
    return next(
        (each for each in (name, today, today.replace(f".{INNER_TOWER}", "."), inside) if each in modules), None
    )


def is_tower(name: str) -> bool:
    """Whether a weight of this name belongs to the vision tower, in any layout."""
    return "vision_tower" in name


def is_embedding(name: str) -> bool:
    """Whether a weight of this name is the LLM's table of input embeddings, in any layout."""
    return "embed_tokens" in name
