"""A plain LLaVA with another vision tower's weights, as a complete folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from llava_patch import parts


def write(base: Path, tower: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the model of the folder `base` with these weights in its tower, and its processor, into `folder`."""
    model = LlavaForConditionalGeneration.from_pretrained(base, dtype="auto")
    own = parts.vision_tower(model)
    own.load_state_dict({name: weight.to(own.dtype) for name, weight in tower.items()})
    if (
        not model.generation_config.do_sample
    ):  # a temperature without sampling is refused on save (base facts §1, row 11)
        model.generation_config.temperature = model.generation_config.top_p = None
    model.save_pretrained(folder)
    LlavaProcessor.from_pretrained(base).save_pretrained(folder)
