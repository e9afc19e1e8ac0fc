"""One vision pass, and all that anybody wants of it: patches, CLS, and CLIP's text-space CLS.

b images · p patches (with CLS first when the strategy is `full`) · v tower width · n image tokens · d LLM width
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel


@dataclass(frozen=True)
class VisionPass:
    """What the tower gave for a batch of images."""

    patches: Tensor
    """(b, p, v): what LLaVA's projector reads; v is multiplied when several layers are selected."""
    cls: Tensor
    """(b, v): token 0 of the same layer, which LLaVA throws away."""
    clip_cls: Tensor
    """(b, v): CLS of the last layer after post-layernorm, the vector that CLIP's visual projection expects."""
    normed_cls: Tensor
    """(b, v): `cls` after post-layernorm, layer by layer."""
    last_cls: Tensor
    """(b, v): CLS of the last layer before post-layernorm."""

    def __getitem__(self, rows: slice) -> VisionPass:
        return VisionPass(**{part.name: getattr(self, part.name)[rows] for part in dataclasses.fields(self)})


def encode_images(llava: LlavaModel, pixel_values: Tensor) -> VisionPass:
    """Runs the vision tower once. (b, 3, h, w) → `VisionPass`.

    A frozen tower runs under `no_grad` unless the pixels themselves want a gradient (a visual security tensor);
    gradient checkpointing would otherwise build a graph through it (base facts §4.2).
    """
    tower = llava.vision_tower
    wants_gradient = pixel_values.requires_grad or any(weight.requires_grad for weight in tower.parameters())
    with contextlib.nullcontext() if wants_gradient else torch.no_grad():
        output = tower(pixel_values.to(tower.dtype), output_hidden_states=True)
        layers = llava.config.vision_feature_layer
        selected = _selected(output.hidden_states, layers)
        first_patch = 1 if llava.config.vision_feature_select_strategy == "default" else 0
        last_cls = output.last_hidden_state[:, 0]
        return VisionPass(
            patches=selected[:, first_patch:],
            cls=selected[:, 0],
            clip_cls=tower.post_layernorm(last_cls),
            normed_cls=_selected([tower.post_layernorm(state[:, 0]) for state in output.hidden_states], layers),
            last_cls=last_cls,
        )


def as_encoder_outputs(image_tokens: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Projected tokens, one (n, d) tensor per image, as LLaVA's `mm_encoder_outputs`: the tower is not run again."""
    return {"image": BaseModelOutputWithPooling(pooler_output=list(image_tokens))}


def _selected(hidden_states: Sequence[Tensor], layers: int | list[int]) -> Tensor:
    if isinstance(layers, int):
        return hidden_states[layers]
    return torch.cat([hidden_states[layer] for layer in layers], dim=-1)
