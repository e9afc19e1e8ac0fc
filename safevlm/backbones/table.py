"""All families, by `model_type`."""

from __future__ import annotations

from typing import Any

from safevlm.backbones import (
    PREFIX,
    gemma3,
    gemma4,
    idefics3,
    internvl,
    llama4,
    llava_anyres,
    mistral3,
    mllama,
    paligemma,
    qwen_vl,
)
from safevlm.backbones.row import Backbone

BACKBONES: dict[str, Backbone] = {
    row.model_type: row
    for family in (qwen_vl, gemma3, internvl, llava_anyres, idefics3, mistral3, paligemma, gemma4, llama4, mllama)
    for row in family.ROWS
}


_BY_PROCESSOR = {row.processor_name: row for row in reversed(BACKBONES.values())}
"""Some families share a class and read alike: the first of them."""


def find(model_type: str) -> Backbone | None:
    """The family of a stock `model_type`, or of one of ours; None: no row has it."""
    return BACKBONES.get(model_type.removeprefix(PREFIX))


def of_processor(processor: Any) -> Backbone | None:
    """The family of a processor; None: LLaVA's, or one of no row."""
    return _BY_PROCESSOR.get(type(processor).__name__)
