"""A LLaVA's vision tower by itself: what anybody reads of it, and a LLaVA with another one's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llava_patch import parts, pretrained
from llava_patch.classes import Config, Model, Processor


def of(model: Model) -> Any:
    """The tower in a model; (i, 3, h, w) → its output."""
    return parts.vision_tower(model)


def all_features(config: Config, tower: Any, images: Tensor) -> Tensor:
    """(i, 3, h, w) → (i, p, v), float32: of the layers that LLaVA reads, and of the last one, with their CLS."""
    output = tower(images.to(tower.dtype), output_hidden_states=True)
    layers = config.vision_feature_layer
    read = [output.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
    return torch.cat([*read, output.last_hidden_state], 1).float()


def write_with(base: Path, tower: Mapping[str, Tensor], folder: Path) -> None:
    """Writes the model of the folder `base` with these weights in its tower, and its processor, into `folder`."""
    model: Any = pretrained.from_folder(Model, base, dtype="auto")
    own = parts.vision_tower(model)
    own.load_state_dict({name: weight.to(own.dtype) for name, weight in tower.items()})
    # a temperature without sampling is refused on save (base facts §1, row 11)
    if not model.generation_config.do_sample:
        model.generation_config.temperature = model.generation_config.top_p = None
    model.save_pretrained(folder)
    pretrained.from_folder(Processor, base).save_pretrained(folder)
