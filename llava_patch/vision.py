"""One vision pass, and all that anybody wants of it: patches, CLS, and CLIP's text-space CLS.

LLaVA reads a layer before the last, and so does a head; the layers behind it run when somebody asks for the last CLS.

b images · p patches (with CLS first when the strategy is `full`) · v tower width · n image tokens · d LLM width
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from llava_patch import fields, parts
from llava_patch.classes import Model

TAKES_OUTPUTS = "mm_encoder_outputs" in inspect.signature(Model.forward).parameters
"""Whether transformers' own LLaVA reads `mm_encoder_outputs`, as it does from 5.18 on. Older ones swallow it among the
arguments they do not know, and answer without the images (`lm_inputs`)."""


@dataclass(frozen=True)
class VisionPass:
    """What the tower gave for a batch of images."""

    patches: Tensor
    """(b, p, v): what LLaVA's projector reads; v is multiplied when several layers are selected."""
    cls: Tensor
    """(b, v): token 0 of the same layer, which LLaVA throws away."""
    read_last: Callable[[], Tensor]
    """→ `last_cls`."""
    norm: Callable[[Tensor], Tensor]
    """The tower's post-layernorm."""

    @cached_property
    def last_cls(self) -> Tensor:
        """(b, v): CLS of the last layer before post-layernorm."""
        return self.read_last()

    @cached_property
    def clip_cls(self) -> Tensor:
        """(b, v): CLS of the last layer after post-layernorm, the vector that CLIP's visual projection expects."""
        return self.norm(self.last_cls)

    @cached_property
    def normed_cls(self) -> Tensor:
        """(b, v): `cls` after post-layernorm, layer by layer."""
        return torch.cat([self.norm(layer) for layer in self.cls.split(self.last_cls.shape[1], dim=1)], dim=1)

    def __getitem__(self, rows: slice) -> VisionPass:
        return dataclasses.replace(
            self, patches=self.patches[rows], cls=self.cls[rows], read_last=lambda: self.last_cls[rows]
        )


def encode_images(model: Model, pixel_values: Tensor) -> VisionPass:
    """Runs the vision tower once. (b, 3, h, w) → `VisionPass`.

    A frozen tower runs under `no_grad` unless the pixels themselves want a gradient (a visual security tensor);
    gradient checkpointing would otherwise build a graph through it (base facts §4.2).
    """
    tower: Any = parts.vision_tower(model)
    pixels, layer = pixel_values.to(tower.dtype), model.config.vision_feature_layer
    learns = _wants_gradient(tower, pixel_values)
    with torch.set_grad_enabled(learns):
        if isinstance(layer, int) and _can_stop(tower):
            kept = range(len(tower.encoder.layers) + 1)[layer]
            front = _of_layers(tower, slice(kept))
            selected = front(pixels, output_hidden_states=False).last_hidden_state

            def read_last() -> Tensor:
                with torch.set_grad_enabled(learns):
                    last: Tensor = _of_layers(tower, slice(kept, None)).encoder(selected).last_hidden_state
                return last[:, 0]

        else:
            output = tower(pixels, output_hidden_states=True)
            selected, last_cls = _selected(output.hidden_states, layer), output.last_hidden_state[:, 0]

            def read_last() -> Tensor:
                return last_cls

        first_patch = 0 if fields.keeps_cls(model.config) else 1
        return VisionPass(selected[:, first_patch:], selected[:, 0], read_last, tower.post_layernorm)


def project(model: Model, patches: Tensor) -> Tensor:
    """(b, p, v) → (b, n, d): what stands in the image slots, extra tokens of `image_tokens.attach` included."""
    projector = parts.projector(model)
    # the packed bytes of a quantised weight are no type to compute in
    computes_in = next(weight.dtype for weight in projector.parameters() if weight.is_floating_point())
    tokens: Tensor = projector(patches.to(computes_in))
    return tokens


def blank_images(model: Model, images: int) -> Tensor:
    """(images, 3, h, w) of zeros, in the type and on the device of the vision tower's weights."""
    return next(parts.vision_tower(model).parameters()).new_zeros(images, *fields.pixel_shape(model.config))


def as_encoder_outputs(image_tokens: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Projected tokens, one (n, d) tensor per image, as the argument `mm_encoder_outputs` of `forward` and `generate`.

    With it neither the vision tower nor the projector is run again. Both write into the dict: make a new one per call.
    """
    features: Any = list(image_tokens)  # typed as one tensor, read as one per image
    return {"image": BaseModelOutputWithPooling(pooler_output=features)}


def as_arguments(image_tokens: Sequence[Tensor]) -> dict[str, Any]:
    """The same as keyword arguments: `model.generate(input_ids, **as_arguments(tokens))`. No tokens: no image."""
    return {"mm_encoder_outputs": as_encoder_outputs(image_tokens) if image_tokens else None}


def lm_inputs(
    model: Model, input_ids: Tensor | None, inputs_embeds: Tensor | None, outputs: dict[str, Any] | None
) -> dict[str, Any]:
    """The arguments by which transformers' own `forward` reads these ids, `outputs` in their image slots.

    With an older transformers that is embeddings with the image tokens written into the slots; ids without slots, as in
    the steps of `generate` after the first, pass as they are. ValueError: slots and image tokens differ in number.
    """
    given = {"input_ids": input_ids, "inputs_embeds": inputs_embeds}
    if TAKES_OUTPUTS:
        return {**given, "mm_encoder_outputs": outputs}
    if outputs is None:
        return given
    if input_ids is None:
        raise ValueError("mm_encoder_outputs stand in image slots of input_ids; with inputs_embeds there are none")
    slots = (input_ids == fields.image_token_id(model.config)).unsqueeze(-1)
    if not slots.any():
        return given
    embedded = model.get_input_embeddings()(input_ids)
    tokens = torch.cat(list(outputs["image"].pooler_output)).to(embedded.device, embedded.dtype)
    if len(tokens) != int(slots.sum()):
        raise ValueError(
            f"Image features and image tokens do not match: {int(slots.sum())} slots, {len(tokens)} tokens"
        )
    return {"inputs_embeds": embedded.masked_scatter(slots, tokens)}


def _wants_gradient(tower: Any, pixel_values: Tensor) -> bool:
    if not torch.is_grad_enabled():
        return False
    return pixel_values.requires_grad or any(weight.requires_grad for weight in tower.parameters())


def _can_stop(tower: Any) -> bool:
    """Whether its forward is CLIP's own, so that it runs the layers that it holds. Training keeps to the usual way:
    ZeRO-3 follows the order in which it first saw modules called."""
    is_own = all(
        "forward" not in vars(module) and module._compiled_call_impl is None for module in (tower, tower.encoder)
    )
    return type(tower) is CLIPVisionModel and not tower.training and is_own


def _of_layers(tower: Any, layers: slice) -> Any:
    """The tower with some of its layers, which are the same modules, as are its hooks."""
    encoder, part = copy.copy(tower.encoder), copy.copy(tower)
    encoder._modules = {**encoder._modules, "layers": encoder.layers[layers]}
    part._modules = {**part._modules, "encoder": encoder}
    return part


def _selected(hidden_states: Sequence[Tensor], layers: int | list[int]) -> Tensor:
    if isinstance(layers, int):
        return hidden_states[layers]
    return torch.cat([hidden_states[layer] for layer in layers], dim=-1)
