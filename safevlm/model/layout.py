"""Where a model has its LLM and what must stay as it is around it: names of modules, by family."""

from __future__ import annotations

from dataclasses import dataclass

from llava_patch import names
from safevlm.backbones.row import Backbone


@dataclass(frozen=True)
class Layout:
    """Names of modules and weights in memory."""

    lm_layers: str
    """Prefix of the weights of the LLM's decoder layers."""
    left_out: tuple[str, ...]
    """Prefixes of the weights that a model without its LLM has none of."""
    lora_targets: str
    """Regular expression for the LLM's linear layers and nothing else."""
    packed_below: str
    """Prefix of the modules whose linear layers quantisation packs."""
    never_packed: tuple[str, ...]
    """Modules with linear layers that stay in full precision; names from the start of the full path."""


LLAVA = Layout(names.LM_LAYERS, (names.LM_LAYERS,), names.LORA_TARGETS, names.PACKED_BELOW, names.NEVER_PACKED)


def of(backbone: Backbone | None) -> Layout:
    """A family's; None: LLaVA-v1.5's."""
    if backbone is None:
        return LLAVA
    kept = (*backbone.seen, names.LM_HEAD)
    left_out = (backbone.lm_layers, *backbone.wide_as_layers)
    return Layout(backbone.lm_layers, left_out, backbone.lora_targets, f"{backbone.llm}.", kept)
